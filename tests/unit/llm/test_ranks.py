"""Two processes that share the calibration windows measure the Gram matrices of one and write the same folder."""

import socket

import pytest
import torch
from tests.unit.llm import tiny
from torch import distributed, multiprocessing

import openwork as ow
from openwork.core.batches import Feed
from openwork.core.measuring import Measuring
from openwork.errors import DataError, RecipeError
from openwork.llm import prune_blockwise
from openwork.methods import dsnot, sparsegpt, wanda
from openwork.recovery import Perp, Soup
from openwork.stats import InputGram
from openwork.structure import partition

WIDE = {"dtype": torch.float64, "batch": 2}
RECIPES = {"sparsegpt": sparsegpt(0.5, double=True), "wanda": wanda(structure=ow.NM(2, 4)), "dsnot": dsnot(0.5)}


def grams(windows):
    """Matrices and tokens of every weight of a Mixtral; each expert has its own."""
    model = tiny.build("mixtral", torch.float64)
    model.config._experts_implementation = "eager"
    parts, _ = partition(model, ow.Element(), ow.Select(include=("model.layers",)))
    found = InputGram(None, double=True).measure(Measuring(model, parts, Feed([windows], torch.device("cpu")), None))
    return {n: (g.matrices, g.tokens) for n, g in found.items()}


def taught(model, seed):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=rng) * (p != 0))


def soup():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 4)
    masks = ow.prune(model, ow.methods.magnitude(0.5)).masks
    report = Soup(4, seed=3)(model, masks, taught)
    return model.state_dict(), report.members


def masks_of(windows):
    found = {}
    for name, recipe in RECIPES.items():
        model = tiny.build("mixtral", torch.float64)
        found[name] = dict(prune_blockwise(model, recipe, windows, batch=2).masks)
    return found


def work(rank, port, root, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    source, windows = tiny.saved("mixtral", root), tiny.ids()
    found = {"grams": grams(windows[rank::2]), "masks": masks_of(windows), "soup": soup()}
    prune_blockwise(source, RECIPES["sparsegpt"], windows, out=f"{folder}/two", memory=0, **WIDE)
    for options, error, words in (
        ({"resume": True}, RecipeError, "resume and recovery work in one process"),
        ({"recovery": Perp()}, RecipeError, "resume and recovery work in one process"),
    ):
        with pytest.raises(error, match=words):
            prune_blockwise(tiny.build("llama"), sparsegpt(0.5), windows, **options)
    with pytest.raises(DataError, match="1 calibration windows cannot be shared by 2 processes"):
        prune_blockwise(tiny.build("llama"), sparsegpt(0.5), windows[:1])
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny.saved("mixtral", root)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    multiprocessing.spawn(work, (port, root, str(folder)), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_gram_matrices_and_tokens_add_up(both):
    alone = grams(tiny.ids())
    assert len(alone) == 14  # four of attention, two of experts, the router; twice
    for name, (matrices, tokens) in alone.items():
        for rank in both[1]:
            torch.testing.assert_close(rank["grams"][name][0], matrices, rtol=1e-10, atol=1e-10)
            assert torch.equal(rank["grams"][name][1], tokens)


def test_masks_are_those_of_one_process(both):
    alone = masks_of(tiny.ids())
    for name, masks in alone.items():
        for tensor, mask in masks.items():
            assert torch.equal(both[1][0]["masks"][name][tensor], both[1][1]["masks"][name][tensor])
            assert torch.equal(both[1][0]["masks"][name][tensor], mask), (name, tensor)


def test_the_folder_is_that_of_one_process(both, root, tmp_path):
    prune_blockwise(tiny.saved("mixtral", root), RECIPES["sparsegpt"], tiny.ids(), out=tmp_path / "one", **WIDE)
    one, two = tiny.load(tmp_path / "one"), tiny.load(both[0] / "two")
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a == 0, b == 0), name
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in both[0].iterdir()) == ["0.pt", "1.pt", "two"]  # no activations left behind


def test_a_soup_is_that_of_one_process(both):
    state, members = soup()
    for rank in both[1]:
        assert rank["soup"][1] == members == [0, 1, 2, 3]
        for name, value in state.items():
            torch.testing.assert_close(rank["soup"][0][name], value)
