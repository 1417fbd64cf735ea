"""``pack``: what is packed, what is chosen, the promise, and everything it refuses."""

import copy
import sys

import pytest
import torch
from tests.unit.runtime.models import always, mlp, net, thin, timed
from torch import nn

import openwork as ow
from openwork.errors import FormatError, OpenworkError
from openwork.runtime import Packed, pack
from openwork.runtime.plan import Choice, Plan
from openwork.runtime.prepacked import PrepackedConv2d, PrepackedLinear, prepacked


def agree(one, two, *inputs):
    found, wanted = one(*inputs).detach(), two(*inputs).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("structure", [None, ow.Block(16, 16), ow.GroupOf(4, dim=0), ow.NM(keep=2, of=4)], ids=repr)
def test_always_packs_every_layer_and_changes_nothing(structure):
    model = net()
    if isinstance(structure, ow.NM):
        model = thin(nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 24)), 1.0)
        ow.prune(model, ow.methods.magnitude(structure=structure, density=0.5))
    model.train()
    state = copy.deepcopy(model.state_dict())
    packed = always(model, structure)
    assert model.training
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not packed.training
    x = torch.randn(3, 48) if isinstance(structure, ow.NM) else torch.randn(3, 3, 12, 12)
    agree(packed, model.eval(), x)
    names = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert {n for n, m in packed.named_modules() if isinstance(m, Packed)} == names
    assert all(packed.openwork_plan[n].reason == "always" for n in names)


@pytest.mark.parametrize(("fastest", "kind"), [("dense", nn.Linear), ("onednn", PrepackedLinear), ("column", Packed)])
def test_the_fastest_candidate_is_chosen(monkeypatch, fastest, kind):
    timed(monkeypatch, {"dense": 9.0, "onednn": 9.0, "column": 9.0} | {fastest: 1.0})
    model, x = mlp(), torch.randn(20, 48)
    packed = pack(model, example=x)
    assert [c.chosen for c in packed.openwork_plan.choices] == [fastest] * 2
    assert isinstance(packed[0], kind)
    assert isinstance(packed[1], nn.Identity) == (fastest == "column")
    agree(packed, model, x)
    agree(packed, model, x[:2])


def test_a_gain_within_the_noise_is_no_gain(monkeypatch):
    timed(monkeypatch, {"dense": 1.0, "onednn": 2.0, "column": 0.98})
    packed = pack(mlp(), example=torch.randn(20, 48))
    assert {c.chosen for c in packed.openwork_plan.choices} == {"dense"}


def test_convolutions_choose_too(monkeypatch):
    model, x = net(density=1.0), torch.randn(2, 3, 12, 12)
    ow.prune(model, ow.methods.magnitude(structure=ow.Block(16, 16), density=0.5))
    for fastest, kind in (("onednn", PrepackedConv2d), ("block", Packed), ("column", Packed)):
        timed(monkeypatch, {"dense": 9.0, "onednn": 9.0, "block": 9.0, "column": 9.0} | {fastest: 1.0})
        packed = pack(model, ow.Block(16, 16), example=x)
        assert isinstance(packed.conv2, kind)
        assert packed.openwork_plan["conv2"].chosen == fastest
        agree(packed, model, x)


def test_the_promise_steps_back_until_it_holds(monkeypatch):
    """Half of the packed layers go back at a time, with the activations they had taken in."""
    model, x = net(), torch.randn(2, 3, 12, 12)
    seen = []

    def slow(new):
        seen.append(sum(isinstance(m, Packed) for m in new.modules()))
        return 1.0 if seen[-1] <= 2 else 1.1

    timed(monkeypatch, {"dense": 2.0, "onednn": 3.0, "column": 1.0}, slow)
    packed = pack(model, example=x)
    assert seen == [5, 3, 2]
    put_back = [c.name for c in packed.openwork_plan.choices if c.reason == "slower end to end"]
    assert len(put_back) == 3
    for name in put_back:
        assert not isinstance(packed.get_submodule(name), Packed)
        assert packed.openwork_plan[name].chosen == "dense"
    assert isinstance(packed.relu1, nn.ReLU) == ("conv1" in put_back)
    assert isinstance(packed.gelu, nn.GELU) == ("fc" in put_back)
    agree(packed, model, x)
    timed(monkeypatch, {"dense": 2.0, "onednn": 3.0, "column": 1.0}, lambda new: 1.03)
    packed = pack(model, example=x)
    assert not [m for m in packed.modules() if isinstance(m, Packed)]
    agree(packed, model, x)
    timed(monkeypatch, {"dense": 2.0, "onednn": 3.0, "column": 1.0}, lambda new: 1.02)
    assert sum(isinstance(m, Packed) for m in pack(model, example=x).modules()) == 5


def test_a_real_measurement_fills_the_table():
    model, x = mlp(), torch.randn(20, 48)
    packed = pack(model, example=x)
    for name in ("0", "2"):
        choice = packed.openwork_plan[name]
        assert set(choice.times) == {"dense", "onednn", "column"}
        assert all(t > 0 for t in choice.times.values())
        assert choice.shape == (20, {"0": 48, "2": 64}[name])
    text = str(packed.openwork_plan)
    assert text.splitlines()[0].split() == [
        "layer",
        "input",
        "stored",
        "as",
        "density",
        "ms",
        "of",
        "the",
        "candidates",
        "chosen",
        "error",
    ]
    assert text.splitlines()[-1].endswith("kernels, 1 thread")
    assert Plan.read(packed.openwork_plan.plain()) == packed.openwork_plan
    agree(packed, model, x)


def test_overrides_are_obeyed_without_measuring():
    model, x = mlp(), torch.randn(20, 48)
    packed = pack(model, example=x, override={"0": "column", "2": "onednn"})
    assert isinstance(packed[0], Packed)
    assert isinstance(packed[2], PrepackedLinear)
    assert [c.reason for c in packed.openwork_plan.choices] == ["override"] * 2
    agree(packed, model, x)
    assert isinstance(always(model, override={"0": "dense"})[0], nn.Linear)


def test_dense_weights_and_layers_out_of_reach_stay(monkeypatch):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.full, self.idle = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.full(self.used(x))

    model = Partly()
    thin(model.used)
    packed = pack(model, example=torch.randn(9, 16))
    assert packed.openwork_plan["full"].reason == "nothing to gain: 100 % of it would be stored"
    assert packed.openwork_plan["idle"].reason == "the example did not reach it"


def test_what_cannot_be_packed_is_listed_with_its_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 8)
            self.grouped, self.same = nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, padding="same")
            self.circular = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
            self.line, self.hooked = nn.Conv1d(8, 8, 3), nn.Linear(8, 8)
            self.hooked.register_forward_hook(lambda *_: None)

    plan = always(thin(Odd())).openwork_plan
    reasons = {c.name: c.reason for c in plan.choices}
    assert reasons == {
        "lin": "always",
        "circular.weight": "padding (1, 1) in mode 'circular'",
        "grouped": "a convolution in 2 groups",
        "hooked.weight": "hooks watch this layer, or its forward is its own",
        "line.weight": "weight of Conv1d, no packed layer for it",
        "same.weight": "padding 'same' in mode 'zeros'",
    }


def test_a_single_layer_is_a_model_too():
    layer, x = thin(nn.Linear(48, 32)), torch.randn(9, 48)
    packed = always(layer)
    assert isinstance(packed, Packed)
    assert packed.openwork_plan[""].chosen == "column"
    agree(packed, layer, x)


def test_shared_modules_and_tied_weights():
    shared = nn.Linear(24, 24)
    model = thin(nn.Sequential(shared, nn.ReLU(), shared))
    packed = always(model)
    assert packed[0] is packed[2]
    assert isinstance(packed[1], nn.ReLU)  # the shared layer must not take it in: its second call has none
    agree(packed, model, torch.randn(5, 24))
    tied = thin(nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)))
    tied[1].weight = tied[0].weight
    agree(always(tied), tied, torch.randn(5, 24))


def test_other_dtypes_of_models(monkeypatch):
    """The tolerance of a bfloat16 layer is its own rounding."""
    timed(monkeypatch, {"dense": 2.0, "onednn": 3.0, "column": 1.0})
    for dtype in (torch.bfloat16, torch.float64):
        model, x = mlp().to(dtype), torch.randn(9, 48, dtype=dtype)
        packed = pack(model, example=x)
        assert packed.openwork_plan["0"].chosen == "column"
        assert packed(x).dtype == dtype
        torch.testing.assert_close(packed(x), model(x), rtol=0.05, atol=0.05)


def test_candidates_that_are_not_exact_enough_are_named(monkeypatch):
    timed(monkeypatch, {"dense": 2.0, "onednn": 3.0, "column": 1.0})
    monkeypatch.setattr(sys.modules["openwork.runtime.plan"], "TOLERANCE", {torch.int8: 1e-7})
    choice = pack(mlp(), example=torch.randn(9, 48), dtype=torch.int8).openwork_plan["0"]
    assert choice.chosen == "dense"
    assert choice.reason == "not exact enough: column"


def test_examples_may_be_tuples_and_keywords(monkeypatch):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, x, *, y):
            return self.a(x) + self.b(y)

    timed(monkeypatch, {"dense": 2.0, "onednn": 3.0, "column": 1.0})
    model, x, y = thin(Two()), torch.randn(5, 16), torch.randn(5, 16)
    packed = pack(model, example={"x": x, "y": y})
    assert {c.chosen for c in packed.openwork_plan.choices} == {"column"}
    torch.testing.assert_close(packed(x, y=y), model(x, y=y))


def test_refusals():
    model, x = mlp(), torch.randn(2, 48)
    cases = [
        ({"plan": "best"}, "pack: plan must be 'measure' or 'always', got 'best'"),
        ({}, "pack: measuring needs example="),
        ({"plan": "always", "dtype": torch.float16}, "pack: dtype must be one of .*, got torch.float16"),
        ({"plan": "always", "override": {"9": "dense"}}, "pack: override names '9', which is not a layer"),
        ({"plan": "always", "override": {"0": "block"}}, "pack: override for 0 must be one of dense, column, onednn"),
    ]
    for options, message in cases:
        with pytest.raises(OpenworkError, match=message):
            pack(model, **options)
    with pytest.raises(OpenworkError, match="pack: override for 0: onednn does not run this layer; choose another"):
        always(mlp().double(), override={"0": "onednn"})
    with pytest.raises(OpenworkError, match="pack: the model is packed already"):
        always(always(model))
    with pytest.raises(OpenworkError, match="pack: the model is compiled; pack it first"):
        always(torch.compile(model, backend="eager"))
    with pytest.raises(OpenworkError, match=r"pack: no layer of Sequential can be packed \(weight of Conv1d"):
        always(nn.Sequential(nn.Conv1d(3, 3, 3)))
    with pytest.raises(OpenworkError, match="0.weight is on meta; the kernels run on the processor"):
        always(nn.Sequential(nn.Linear(3, 3, device="meta")))
    with pytest.raises(FormatError, match="no storage format follows from 'block'"):
        pack(model, "block", example=x)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(FormatError, match="NaN"):
        always(model)
    with pytest.raises(KeyError, match="is not one of its layers: a"):
        Plan((Choice("a", (), "", 1.0),))["b"]


def test_bfloat16_layers_in_onednns_order_where_it_runs_them(monkeypatch):
    for layer, x in (
        (nn.Linear(48, 40), torch.randn(9, 48)),
        (nn.Conv2d(8, 16, 3, padding=1), torch.randn(2, 8, 7, 7)),
    ):
        layer, x = layer.bfloat16(), x.bfloat16()
        fast = prepacked(layer)
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            y = fast(x)
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y, layer(x), rtol=2e-2, atol=2e-2)
        assert prepacked(layer.half()) is None
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert prepacked(nn.Linear(8, 8)) is None


def test_times_of_other_kernels_are_not_recalled(monkeypatch):
    plans = sys.modules["openwork.runtime.plan"]
    before = plans.key_of(shape=(1, 2))
    assert plans.key_of(shape=(1, 2)) == before
    monkeypatch.setattr(plans, "_build", lambda: (1, 2))
    assert plans.key_of(shape=(1, 2)) != before
