"""AC/DC: exact zeros, restarts, the phase table, and iterative hard thresholding."""

import pytest
import torch
from tests.unit.methods.scoring import kept_by_hand
from torch import nn

import openwork as ow
from openwork.errors import RecipeError
from openwork.methods import acdc
from openwork.methods.acdc import CIFAR, IMAGENET
from openwork.schedules import Phases, Stretch, alternating

KINDS = ("sparse", "dense")


def test_the_table_is_that_of_the_paper():
    """100 epochs: compress at 10, 20, ..., 70 and 85; decompress at 15, 25, ..., 65 and 75."""
    schedule = acdc(0.1, steps=100).schedule
    begins = {
        kind: [a for (a, _), s in zip(schedule.bounds, IMAGENET, strict=True) if s.phase == kind]
        for kind in ("sparse", "dense")
    }
    assert begins["sparse"] == [10, 20, 30, 40, 50, 60, 70, 85]
    assert begins["dense"] == [0, 15, 25, 35, 45, 55, 65, 75]
    assert schedule.bounds[-1] == (85, 100)
    assert [t for t in range(100) if schedule(t).restart] == begins["dense"][1:]
    assert [t for t in range(100) if schedule(t).update] == sorted(begins["sparse"] + begins["dense"][1:])
    assert {schedule(t).share for t in range(10, 15)} == {0.1}
    assert {schedule(t).share for t in range(75, 85)} == {1.0}


def test_the_table_of_cifar_and_tables_from_lengths():
    """200 epochs: compress at 10, 50, 90, 130, 170; decompress at 30, 70, 110, 150."""
    schedule = acdc(0.1, steps=200, phases="cifar").schedule
    begins = {k: [a for (a, _), s in zip(schedule.bounds, CIFAR, strict=True) if s.phase == k] for k in KINDS}
    assert begins == {"sparse": [10, 50, 90, 130, 170], "dense": [0, 30, 70, 110, 150]}
    assert schedule.bounds[-1] == (170, 200)
    made = alternating(12, warmup=2, period=1, last_dense=3, final_sparse=4)
    assert [(s.phase, round(12 * s.fraction)) for s in made] == [
        ("dense", 2), ("sparse", 1), ("dense", 1), ("sparse", 1), ("dense", 3), ("sparse", 4)
    ]  # fmt: skip
    assert acdc(0.1, steps=12, phases=made).schedule.stretches == made


def test_lengths_that_make_no_table_are_refused():
    with pytest.raises(RecipeError, match="alternating: period must be at least 1"):
        alternating(10, warmup=1, period=0)
    for total in (10, 11):  # half a period, an even number of periods
        with pytest.raises(RecipeError, match="must be an odd number of periods of 2, sparse first and last, got"):
            alternating(total, warmup=1, period=2, last_dense=2, final_sparse=4)
    with pytest.raises(RecipeError, match="acdc: phases must be 'imagenet', 'cifar' or stretches, got 'mnist'"):
        acdc(0.1, phases="mnist")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 6))


def step(model, optimizer, seed):
    rng = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    (model(torch.randn(8, 10, generator=rng)) - torch.randn(8, 6, generator=rng)).square().mean().backward()
    optimizer.step()


OPTIMISERS = [
    lambda m: torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-2),
    lambda m: torch.optim.AdamW(m.parameters(), lr=0.1, weight_decay=0.1),
]


@pytest.mark.parametrize("optimise", OPTIMISERS, ids=["sgd", "adamw"])
def test_compressed_phases_hold_and_decompression_restarts(optimise):
    model, steps, total = net(), 60, 256
    optimizer = optimise(model)
    run = ow.attach(model, acdc(0.2, steps=steps), optimizer)
    compressed, supports = 0, []
    for i in range(steps):
        schedule = run.recipe.schedule
        step(model, optimizer, i)
        t = i + 1
        if schedule(t).name == "sparse":
            compressed += 1
            assert run.masks.kept() == 52  # ceil(0.2 * 256)
            params = dict(model.named_parameters())
            assert all(bool((params[n][~m] == 0).all()) for n, m in run.masks.items())
            if schedule(t).update:
                supports.append(run.masks)
        else:
            assert run.masks.kept() == total
        if t < steps and schedule(t).restart:
            assert not optimizer.state
            assert sum(int((p != 0).sum()) for p in model.parameters() if p.ndim == 2) == 52
    assert compressed == 7 * 3 + 9 + 1
    assert run.finish().counts.kept == 52
    assert any(a.distance(b) > 0 for a, b in zip(supports, supports[1:], strict=False))


def test_decompression_does_not_change_the_function():
    """The last step of a sparse phase enters the dense one: all masks are open, and the output is that of the mask."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = ow.attach(model, acdc(0.2, steps=60), optimizer)
    for i in range(8):
        step(model, optimizer, i)
    masks = run.masks
    assert run.phase == "sparse"
    step(model, optimizer, 8)
    assert (run.phase, run.density) == ("dense", 1.0)
    x, twin = torch.ones(2, 10), net()
    twin.load_state_dict({n: v * masks[n] if n in masks else v for n, v in model.state_dict().items()})
    assert torch.equal(model(x), twin(x))


def test_keeping_brings_the_old_values_back():
    kept, zeroed = net(), net()
    for model, word in ((kept, "keep"), (zeroed, "zero")):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = ow.attach(model, acdc(0.2, steps=60, on_decompress=word), optimizer)
        for i in range(9):
            step(model, optimizer, i)
        assert run.phase == "dense"
    assert int((kept[0].weight != 0).sum()) == 160
    assert int((zeroed[0].weight != 0).sum() + (zeroed[2].weight != 0).sum()) == 52


def test_it_is_iterative_hard_thresholding():
    """Quadratic loss, full gradient, one dense step and one sparse step of rate 0: w <- H_k(w - lr grad) exactly."""
    n, keep, rate, rounds = 12, 4, 0.07, 12
    torch.manual_seed(1)
    root, target = torch.randn(n, n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    hessian = root @ root.T / n

    def gradient(w):
        return hessian @ (w - target)

    model = nn.Linear(n, 1, bias=False).double()
    stretches = tuple(Stretch(kind, 1 / (2 * rounds)) for _ in range(rounds) for kind in ("dense", "sparse"))
    w = model.weight.detach()[0].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    run = ow.attach(model, acdc(keep / n, steps=2 * rounds, phases=stretches), optimizer)
    supports = set()
    for i in range(2 * rounds):
        optimizer.param_groups[0]["lr"] = rate if i % 2 == 0 else 0.0
        model.weight.grad = gradient(model.weight.detach()[0])[None]
        optimizer.step()
        if i % 2 == 0:
            w = w - rate * gradient(w)
            support = kept_by_hand(w.abs().tolist(), keep)
            supports.add(frozenset(support))
            w = torch.stack([v if j in support else torch.zeros_like(v) for j, v in enumerate(w)])
        torch.testing.assert_close(model.weight.detach()[0], w, rtol=1e-13, atol=1e-15)
    assert len(supports) > 1
    assert run.finish().counts.kept == keep


def test_a_table_must_end_sparse_and_have_steps():
    with pytest.raises(RecipeError, match="the last stretch must be sparse"):
        acdc(0.1, phases=(Stretch("sparse", 0.5), Stretch("dense", 0.5)))
    with pytest.raises(RecipeError, match="3 steps give the dense phase of 0.100 no step; train longer"):
        acdc(0.1, steps=3)
    with pytest.raises(RecipeError, match="the fractions must sum to 1, got 0.900000"):
        Phases(0.1, 10, (Stretch("dense", 0.5), Stretch("sparse", 0.4)))


def test_single_weights_are_ranked_over_the_model_and_units_in_their_layer():
    model = net()
    for structure, same in ((ow.Element(), False), (ow.Row(), True)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        run = ow.attach(model, acdc(0.5, structure, steps=20), optimizer)
        for i in range(20):
            step(model, optimizer, i)
        rows = [t for t in run.finish().tensors if t["units"]]
        assert all(t["units_kept"] == t["units"] / 2 for t in rows) == same
        model = net()
