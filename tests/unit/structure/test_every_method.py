"""Structures times methods: every criterion and gate works on every kind of coupled units, or says why it cannot."""

import copy
from functools import cache

import pytest
import torch
from tests.unit.graph import architectures
from torch.nn import functional as F

import openwork as ow
from openwork import methods
from openwork.graph import groups
from openwork.schedules import Stretch
from openwork.structure import coupling

hf = pytest.importorskip("transformers", reason="needs transformers: pip install 'openwork[hf]'")

STRETCHES = (Stretch("dense", 0.25), Stretch("soften", 0.5), Stretch("sparse", 0.25))
METHODS = {
    "magnitude": lambda s: methods.magnitude(0.5, s),
    "taylor": lambda s: methods.taylor(0.5, s, batches=1),
    "snip": lambda s: methods.snip(0.5, s),
    "grasp": lambda s: methods.grasp(0.5, s),
    "bn_scale": lambda s: methods.group_importance(0.5, s, criterion="bn_scale"),
    "fpgm": lambda s: methods.group_importance(0.5, s, criterion="fpgm"),
    "group hessian": lambda s: methods.group_importance(0.5, s, criterion="hessian", batches=1),
    "spode": lambda s: methods.spode(0.5, s, steps=2),
    "random_search": lambda s: methods.random_search(0.5, s, draws=2),
    "wanda": lambda s: methods.wanda(0.5, s, batches=1),
    "ecoflap": lambda s: methods.ecoflap(0.5, s, batches=1),
    "beta_rank": lambda s: methods.beta_rank(0.5, s),
    "obspa": lambda s: methods.obspa(0.5, s, batches=1),
    "attention": lambda s: methods.sequential_attention_pp(0.5, s, steps=4, schedule=STRETCHES),
}
KINDS = {
    "ResNet-8": ("channels",),
    "BERT": ("channels", "hidden", "vocabulary"),
    "GPT-2": ("channels", "hidden", "layers"),
    "Llama": ("channels", "heads"),
    "Mixtral": ("channels", "hidden", "experts", "layers", "vocabulary"),
}
NO_NORM = ("bn_scale", "no norm scales these units, so their scales cannot rank them; leave the group out")
NO_READER = (
    "obspa",
    "no layer reads these units as its inputs, so GroupSurgeon has nothing to weigh and to refit; take",
)
ALONE = ("fpgm", "needs weights of two dimensions or more that hold several units; this group has none. Take another")
LOOKED_UP = "its units are looked up in a table and nothing multiplies with them, so no inputs weigh them; take a crit"
TABLE = (
    "Embedding: input norms are known for linear and convolution layers only; leave it out with Select.exclude=.* or "
)
REFUSED = {
    "channels": [NO_NORM],
    "heads": [NO_NORM],
    "experts": [NO_NORM, NO_READER],
    "layers": [ALONE, NO_READER],
    "vocabulary": [NO_NORM, NO_READER],
    "hidden": [],
    "ResNet-8 channels": [],
    "GPT-2 hidden": [("obspa", TABLE)],
    "BERT vocabulary": [NO_NORM, NO_READER, *((m, LOOKED_UP) for m in ("wanda", "ecoflap", "beta_rank"))],
}


@cache
def built(name):
    """A tiny model, what it is called with, a batch with its labels, and a loss of logits and batch or labels."""
    torch.manual_seed(0)
    if name == "ResNet-8":
        x = torch.randn(4, 1, 8, 8)
        return ow.build_model("resnet8", (1, 8, 8)).eval(), x, (x, torch.tensor([1, 2, 3, 4])), F.cross_entropy
    model, given = architectures.build(name)
    model.config.use_cache = False
    labels = torch.tensor([0, 1]) if name == "BERT" else given["input_ids"]
    return model, given, {**given, "labels": labels}, None


def logits_loss(logits, batch):
    return F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten())


def perform(word, recipe, model, batch, loss):
    if recipe.drive == "prune":
        return ow.prune(model, recipe, [batch], logits_loss if word == "grasp" and loss is None else loss)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    run = ow.attach(model, recipe, optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        (model(**batch).loss if loss is None else loss(model(batch[0]), batch[1])).backward()
        optimizer.step()
    return run.finish()


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, kinds in KINDS.items() for k in kinds])
def test_every_method_prunes_every_kind_of_units(name, kind, monkeypatch):
    dense, given, batch, loss = built(name)
    graphs = cache(lambda _: groups.build_graph(dense, given))  # the same for every copy
    monkeypatch.setattr(coupling, "build_graph", lambda model, example: graphs(0))
    refused = dict(REFUSED.get(f"{name} {kind}", REFUSED[kind]))
    structure = getattr(ow, kind)(example=given)
    before = {n: p.clone() for n, p in dense.state_dict().items()}
    for word, recipe in METHODS.items():
        model = copy.deepcopy(dense)
        if word in refused:
            with pytest.raises(ow.OpenworkError, match=refused[word]):
                perform(word, recipe(structure), model, batch, loss)
            assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items()), word
            continue
        result = perform(word, recipe(structure), model, batch, loss)
        kept, units = (sum(int(f(u)) for u in result.units.values()) for f in (torch.sum, torch.numel))
        assert abs(kept / units - 0.5) <= 0.05, (word, kept, units)
        params = dict(model.named_parameters())
        assert all(not bool(params[n][~mask].any()) for n, mask in result.masks.items()), word
