"""One row per refusal: the call, the error, and words of its message."""

import contextlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.allocation import ErdosRenyi, Global, Uniform
from openwork.core.batches import Feed, loss_on
from openwork.core.compose import Chain, On
from openwork.core.masks import Masks, unpack_bits
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Gate, Rule, Stat
from openwork.core.recipe import Recipe
from openwork.core.select import count_kept, keep_top
from openwork.core.serial import from_plain, to_plain
from openwork.core.views import linear_view
from openwork.criteria import Learned, Magnitude, Saliency, StepGradient, WeightTimesInput
from openwork.engine.cycle import Cycle
from openwork.errors import (
    DensityMissed,
    DivergedError,
    FileError,
    MissingStatistic,
    OpenworkError,
    RecipeError,
    StructureError,
    VerificationFailed,
)
from openwork.methods import acdc, gradual_magnitude, imp, magnitude, rigl, sequential_attention_pp, snip
from openwork.relax import SoftmaxAttention
from openwork.rules.drop_grow import ConstantFraction, CosineFraction, DropGrow
from openwork.rules.topk import Repeat, TopK
from openwork.schedules import Cubic, OneShot, Periodic, Phases, Rounds, Stretch
from openwork.schedules.shapes import _Gradual
from openwork.stats import GradientFlow, InputSquares, LossGradient, SynapticFlow
from openwork.structure import NM, Block, Element, GroupOf, Tiles, partition
from openwork.zoo import build_model


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))


BATCH = (torch.ones(4, 8), torch.tensor([0, 1, 2, 3]))


def one(rule, structure=None, density=0.5, schedule=None):
    return Recipe("made", structure or Element(), rule, schedule or OneShot(density))


def prune(rule, structure=None, model=None, **more):
    given = {"data": [BATCH], "loss": F.cross_entropy, **more}
    return ow.prune(model or net(), one(rule, structure), **given)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def now(**more):
    parts, _ = partition(net(), Element(), ow.Select())
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    return Now(parts, units, {n: p.detach() for n, p in net().named_parameters()}, **more)


def grow_on_nan():
    seen = now(grads={"0.weight": torch.full((12, 8), math.nan)})
    seen.units["0.weight"][::2] = False
    DropGrow()._replace("0.weight", seen.parts["0.weight"], seen, 0.5)


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def after_detach():
    model = net()
    run = ow.attach(model, magnitude(density=0.5), sgd(model))
    run.detach()
    run.finish()


def late_gates():
    model = net()
    optimizer = sgd(model)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    recipe = sequential_attention_pp(density=0.5, structure=Block(2, 2), steps=60, min_blocks=2)
    ow.attach(model, replace(recipe, relaxation=SoftmaxAttention(learning_rate=2.0)), optimizer)


def through_gates():
    model = net()
    recipe = Recipe("made", Element(), TopK(Saliency()), Cubic(0.5, 0, 5), sequential_attention_pp().relaxation)
    ow.attach(model, recipe, sgd(model), data=[BATCH], loss=F.cross_entropy)


class Bad(Rule):
    """Answers with whatever it is given."""

    def __init__(self, units=None, edits=None):
        self.units, self.edits = units, edits or {}

    def update(self, now, phase, state):
        return Update(self.units(now) if self.units else now.units, edits=self.edits)


class Other(Stat):
    pass


def held(name, mask):
    with ow.hold(net(), {name: mask}):
        pass


def early():
    rounds = Cycle(net(), imp(density=0.5, rounds=1, rewind="none"))
    rounds.prune_round()
    rounds.prune_round()


def foreign_state(engine):
    model = net()
    if engine == "attach":
        optimizer = sgd(model)
        run = ow.attach(model, magnitude(density=0.5), optimizer)
        ow.attach(model, magnitude(density=0.25), optimizer).load_state_dict(run.state_dict())
    elif engine == "other model":
        run = ow.attach(model, magnitude(density=0.5), sgd(model))
        other = nn.Sequential(nn.Linear(8, 3))
        ow.attach(other, magnitude(density=0.5), sgd(other)).load_state_dict(run.state_dict())
    else:
        state = Cycle(model, imp(density=0.5, rewind="none")).state_dict()
        Cycle(model, imp(density=0.25, rewind="none")).load_state_dict(state)


def attach_untrained():
    model = net()
    ow.attach(model, magnitude(density=0.5), torch.optim.SGD(model[0].parameters(), lr=0.1))


def dead_layer():
    model = net()
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[0].bias, -1.0)
    ow.prune(model, snip(density=0.5), data=[BATCH], loss=F.cross_entropy)


def wrong_save(tmp_path):
    model, other = net(), net()
    result = ow.prune(model, magnitude(density=0.5))
    other.load_state_dict(model.state_dict())
    other.add_module("more", nn.Linear(2, 2))
    ow.save(other, result, tmp_path / "r")


class Head(nn.Module):
    """Its weight is used, but not through a layer's forward."""

    def __init__(self):
        super().__init__()
        self.body, self.unused = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(x, self.body.weight)


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.ConvTranspose1d(1, 2, 3)

    def forward(self, x):
        return self.cell(x[:, None])


def recipe_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return Recipe.load(tmp_path / name)


ROWS = [
    # selection
    (lambda t: count_kept(0.5, 4, "up"), OpenworkError, "rounding must be 'ceil', 'floor' or 'nearest', got 'up'"),
    (lambda t: keep_top(torch.ones(2, 2), 1), OpenworkError, r"scores must be one-dimensional, got shape \(2, 2\)"),
    (lambda t: keep_top(torch.tensor([1.0, math.nan]), 1), OpenworkError, "scores must not be NaN, got NaN at unit 1"),
    (lambda t: keep_top(torch.ones(4), 5), OpenworkError, "keep must be between 0 and the 4 units, got 5"),
    (lambda t: keep_top(torch.ones(4), -1), OpenworkError, "keep must be between 0 and the 4 units, got -1"),
    (lambda t: keep_top(torch.ones(4), 1, 3), OpenworkError, "runs of 3 do not divide 4 units"),
    (lambda t: keep_top(torch.ones(4), 3, 2), OpenworkError, "keep must be between 0 and 2 in every run, got"),
    (
        lambda t: keep_top(torch.ones(4), 1, torch.zeros(3, dtype=torch.int64)),
        OpenworkError,
        "scope needs one id per unit",
    ),
    (
        lambda t: keep_top(torch.ones(2), 2, torch.tensor([0, 1])),
        OpenworkError,
        "the size of its region in every region",
    ),
    # masks
    (lambda t: Masks({"w": torch.ones(2)}), OpenworkError, "w: a mask must be bool, got torch.float32"),
    (
        lambda t: Masks({"w": torch.ones(2) > 0}).distance({}),
        OpenworkError,
        "masks of different tensors cannot be compared",
    ),
    (
        lambda t: unpack_bits(torch.zeros(1, dtype=torch.uint8), (9,)),
        FileError,
        r"a packed mask of shape \(9,\) needs 2 bytes",
    ),
    (
        lambda t: Masks.unpack({"w": torch.zeros(1, dtype=torch.uint8)}, {}),
        FileError,
        "packed masks and shapes must name the same tensors",
    ),
    # recipes
    (lambda t: magnitude(0.7, NM(2, 4)), RecipeError, "keeps 0.5 by definition, but density 0.7 was asked"),
    (
        lambda t: from_plain({"kind": "Select", "include": "fc"}),
        OpenworkError,
        "Select: include must be of type|include must be a tuple",
    ),
    (
        lambda t: Recipe.from_dict({"format": 1, "kind": "Recipe", "name": deep(200)}),
        RecipeError,
        "deep; this is no recipe",
    ),
    (lambda t: Recipe.from_dict([]), RecipeError, "a recipe must be a mapping with format: 1, got 'list'"),
    (
        lambda t: Recipe.from_dict({"format": 1, "kind": "Element"}),
        RecipeError,
        "a recipe must have kind: Recipe, got Element",
    ),
    (lambda t: from_plain({"kind": "os.system"}), RecipeError, "unknown kind 'os.system' in a recipe; known: Block"),
    (
        lambda t: from_plain({"kind": "Element", "par": "row"}),
        RecipeError,
        "Element: unknown key 'par'; did you mean 'per'",
    ),
    (
        lambda t: from_plain({"kind": "Block", "rows": 1}),
        RecipeError,
        "Block: .*missing 1 required positional argument: 'cols'",
    ),
    (lambda t: to_plain(SimpleNamespace()), RecipeError, "a recipe must be plain data, got"),
    (
        lambda t: to_plain(partition(net(), Element(), ow.Select())[0]["0.weight"]),
        RecipeError,
        "only openwork's own parts can be written",
    ),
    (lambda t: magnitude(0.5).save(t / "r.txt"), FileError, "a recipe file must end in .json, .yaml or .yml"),
    (lambda t: Recipe.load(t / "r.json"), FileError, "no such recipe file"),
    (lambda t: recipe_file(t, "r.json", "{"), FileError, "not valid JSON or YAML"),
    (lambda t: recipe_file(t, "r.yaml", "a: [1"), FileError, "not valid YAML|not valid JSON or YAML"),
    (lambda t: ow.prune(net(), "magnitude"), RecipeError, "a recipe must be a Recipe, got str; call a method"),
    (lambda t: Chain(()), RecipeError, "Chain: needs at least one rule, got none"),
    (
        lambda t: prune(On("x*", TopK(Magnitude()))),
        RecipeError,
        r"On: pattern 'x\*' matches none of the pruned tensors",
    ),
    # structures
    (lambda t: Element("col"), StructureError, "Element: per must be 'tensor' or 'row', got 'col'"),
    (lambda t: Block(0, 4), StructureError, "Block: rows and cols must be positive integers, got 0 and 4"),
    (lambda t: NM(5, 4), StructureError, "NM: keep must be between 1 and of, got keep=5, of=4"),
    (lambda t: NM(2, 4, dim=2), StructureError, r"NM: dim must be 1 \(inputs\) or 0 \(outputs\), got 2"),
    (lambda t: GroupOf(0), StructureError, "GroupOf: size must be a positive integer, got 0"),
    (lambda t: GroupOf(2, dim=3), StructureError, r"GroupOf: dim must be 1 \(inputs\) or 0 \(outputs\), got 3"),
    (
        lambda t: partition(nn.Conv2d(3, 4, 3), GroupOf(2), ow.Select()),
        StructureError,
        "needs a channel count divisible by 2, but it is 3",
    ),
    (
        lambda t: partition(net(), ow.Filter(), ow.Select()),
        StructureError,
        "fits none of the 2 selected tensors .Filter applies to convolutions only",
    ),
    (
        lambda t: partition(nn.ReLU(), Element(), ow.Select()),
        StructureError,
        "has no parameters, so there is nothing to prune",
    ),
    (lambda t: Tiles("w", linear_view((2, 2))).spread(torch.ones(3)), StructureError, "w: 4 units expected, got 3"),
    (lambda t: ow.Select("fc"), StructureError, "include must be a tuple of patterns, got 'fc'"),
    (lambda t: ow.Select(min_units=0), StructureError, "min_units must be at least 1, got 0"),
    # schedules
    (lambda t: OneShot(0.5, -1), RecipeError, "OneShot: at must not be negative, got -1"),
    (lambda t: Cubic(0.5, 5, 5), RecipeError, "Cubic: needs 0 <= begin < end, got 5 and 5; use OneShot for one step"),
    (lambda t: Cubic(0.5, 0, 5, 0), RecipeError, "Cubic: every must be at least 1 step, got 0"),
    (lambda t: Cubic(0.5, 0, 5, initial=0.2), RecipeError, "Cubic: initial 0.2 must not be below density 0.5"),
    (lambda t: Periodic(0.5, 0, 5), RecipeError, "Periodic: every must be at least 1 step"),
    (lambda t: Rounds(0.5, 0), RecipeError, "Rounds: rounds must be at least 1, got 0"),
    (lambda t: Rounds(0.5, 1, "all"), RecipeError, "Rounds: rewind must be 'none', 'weights' or 'lr', got 'all'"),
    (lambda t: _Gradual(0.5, 0, 5).share(0.5), RecipeError, "_Gradual has no curve"),
    (lambda t: Stretch("soft", 0.5), RecipeError, "Stretch: phase must be 'dense', 'soften' or 'sparse', got 'soft'"),
    (lambda t: Stretch("dense", 0), RecipeError, r"Stretch: fraction must be in \(0, 1\], got 0"),
    (
        lambda t: Phases(0.5, 10, (Stretch("dense", 1),)),
        RecipeError,
        "the last stretch must be sparse, otherwise the density is never reached",
    ),
    (lambda t: Phases(0.5, 10, (Stretch("sparse", 0.5),)), RecipeError, "the fractions must sum to 1, got 0.500000"),
    (
        lambda t: Phases(0.5, 10, (Stretch("sparse", 1),), every=0),
        RecipeError,
        "needs every >= 1 and exponent > 0, got 0",
    ),
    (
        lambda t: Phases(0.5, 10, (Stretch("sparse", 1),), restart="x"),
        RecipeError,
        "restart must be 'all', 'dense' or 'none', got 'x'",
    ),
    (lambda t: acdc(density=0.5, steps=5), RecipeError, r"5 steps give the \w+ phase of 0.\d+ no step; train longer"),
    # allocations
    (lambda t: Uniform(at_least=-1), RecipeError, "Uniform: at_least must not be negative, got -1"),
    (lambda t: ErdosRenyi(at_least=-1), RecipeError, "ErdosRenyi: at_least must not be negative, got -1"),
    (
        lambda t: Global(floor_share=1.0),
        RecipeError,
        r"Global: floor must be >= 0 and floor_share in \[0, 1\), got 0 and 1.0",
    ),
    (
        lambda t: prune(TopK(Magnitude(), Global(floor=40))),
        RecipeError,
        "a floor of 40 units in each of 2 tensors needs 80 units, but the budget is 72 of 144",
    ),
    (
        lambda t: prune(TopK(Magnitude(), Global()), NM(2, 4)),
        RecipeError,
        "cannot be ranked over the whole model; use the layer-wise scope",
    ),
    (lambda t: prune(TopK(Magnitude(), ErdosRenyi()), NM(2, 4)), RecipeError, "fixes its densities; use Uniform"),
    (
        lambda t: prune(TopK(Magnitude(), ErdosRenyi(at_least=48))),
        RecipeError,
        "72 units cannot be shared with at_least=48 in every tensor",
    ),
    # criteria and statistics
    (lambda t: Magnitude("l3"), RecipeError, "Magnitude: norm must be 'l1' or 'l2', got 'l3'"),
    (
        lambda t: prune(TopK(Learned())),
        MissingStatistic,
        "no gate was learned; Learned.. needs a soft relaxation and ow.attach",
    ),
    (
        lambda t: prune(TopK(StepGradient())),
        MissingStatistic,
        "made reads the gradients of training steps; use ow.attach",
    ),
    (
        lambda t: now().grad("0.weight"),
        MissingStatistic,
        "no gradient at step 0; this rule reads the gradients of the current step",
    ),
    (
        lambda t: now()[Other()],
        MissingStatistic,
        "was not measured here; list it in the rule's `needs` and use a driver",
    ),
    (lambda t: Other().measure(None), OpenworkError, "Other does not say how it is measured"),
    (lambda t: LossGradient(0), RecipeError, "LossGradient: batches must be at least 1, got 0"),
    (lambda t: InputSquares(0), RecipeError, "InputSquares: batches must be at least 1, got 0"),
    (
        lambda t: GradientFlow(1, 0.0),
        RecipeError,
        "GradientFlow: batches must be >= 1 and temperature > 0, got 1 and 0.0",
    ),
    (lambda t: dead_layer(), DivergedError, "0.weight: no gradient reaches it, so its connections cannot be scored"),
    (
        lambda t: prune(TopK(WeightTimesInput()), model=Head()),
        MissingStatistic,
        "body.weight: its inputs were never seen .2 tensors.",
    ),
    (
        lambda t: prune(TopK(WeightTimesInput()), model=Transposed()),
        MissingStatistic,
        "ConvTranspose1d: input norms are known for linear and convolution layers only",
    ),
    (
        lambda t: ow.prune(net(), one(TopK(Saliency())), data=[BATCH[0]], loss=F.cross_entropy),
        OpenworkError,
        r"a batch must be \(x, y\) or a mapping to compute a loss, got Tensor",
    ),
    (
        lambda t: prune(TopK(Saliency()), loss=lambda out, y: out),
        OpenworkError,
        r"loss must return a scalar tensor, got \(4, 4\)",
    ),
    (lambda t: loss_on(net(), BATCH, None), MissingStatistic, r"a loss is needed for \(x, y\) batches; pass loss="),
    (
        lambda t: loss_on(lambda **k: SimpleNamespace(), {"x": 1}, None),
        OpenworkError,
        "the model's output has no .loss; put labels into the batch or pass loss=",
    ),
    (
        lambda t: Feed(None, torch.device("cpu")).next("step 3"),
        MissingStatistic,
        "data is needed for step 3; pass data=, an iterable of batches",
    ),
    (
        lambda t: ow.prune(net(), snip(density=0.5), loss=F.cross_entropy),
        MissingStatistic,
        r"LossGradient needs data; pass data=, an iterable of \(x, y\) batches",
    ),
    (
        lambda t: SynapticFlow().measure(
            SimpleNamespace(feed=Feed([(torch.ones(2, 3, dtype=torch.int64),)], torch.device("cpu")))
        ),
        MissingStatistic,
        "SynapticFlow needs real-valued inputs; pass input_shape=",
    ),
    (
        lambda t: SynapticFlow().measure(SimpleNamespace(feed=Feed(None, torch.device("cpu")))),
        MissingStatistic,
        "SynapticFlow needs to know the input shape; pass input_shape=",
    ),
    (
        lambda t: GradientFlow().measure(SimpleNamespace(feed=Feed([BATCH], torch.device("cpu")), loss=None)),
        MissingStatistic,
        "GradientFlow scales logits, so it needs loss=",
    ),
    (
        lambda t: Phases(0.5, 10, (Stretch("sparse", 1),), exponent=0),
        RecipeError,
        "Phases: needs every >= 1 and exponent > 0, got 1 and 0",
    ),
    # rules
    (lambda t: Repeat(TopK(Magnitude()), 0), RecipeError, "Repeat: rounds must be at least 1, got 0"),
    (lambda t: ConstantFraction(0.0), RecipeError, r"ConstantFraction: alpha must be in \(0, 1\], got 0.0"),
    (lambda t: CosineFraction(0.3, 0), RecipeError, "CosineFraction: end must be at least 1 step, got 0"),
    (
        lambda t: ow.attach(m := net(), one(DropGrow(), NM(2, 4), schedule=Periodic(0.5, 1, 5)), sgd(m)),
        RecipeError,
        "DropGrow moves units over the whole tensor, but this structure has its own regions",
    ),
    (lambda t: grow_on_nan(), DivergedError, "the growth scores are NaN at step 0; check the gradients"),
    (
        lambda t: TopK._finite("w", torch.tensor([1.0, math.inf]), Phase(0.5, True)),
        DivergedError,
        "w: 1 of 2 scores are NaN or infinite in the sparse phase",
    ),
    (lambda t: Gate().set_units(torch.ones(1)), OpenworkError, "Gate has no units"),
    # engines
    (
        lambda t: ow.prune(net(), rigl(density=0.5)),
        RecipeError,
        "rigl works over many steps; use ow.attach, ow.prune does one-shot recipes only",
    ),
    (lambda t: prune(DropGrow()), MissingStatistic, "made reads the gradients of training steps; use ow.attach"),
    (
        lambda t: ow.prune(
            net(), Recipe("made", Element(), TopK(Magnitude()), OneShot(0.5), sequential_attention_pp().relaxation)
        ),
        RecipeError,
        r"made trains gates \(SoftmaxAttention\); use ow.attach",
    ),
    (
        lambda t: attach_untrained(),
        OpenworkError,
        r"magnitude: the optimiser does not train 2.weight \(1 of 2 targets\)",
    ),
    (
        lambda t: foreign_state("attach"),
        RecipeError,
        "the saved state belongs to another recipe; use the same one",
    ),
    (lambda t: foreign_state("other model"), RecipeError, "0.weight: the saved state does not fit this model"),
    (lambda t: foreign_state("cycle"), RecipeError, "the saved state belongs to another recipe; use the same one"),
    (lambda t: early(), RecipeError, r"all 1 rounds are done; call finish\(\)"),
    (
        lambda t: ow.cycle(net(), imp(density=0.5), lambda m, r: None),
        RecipeError,
        "rewinding weights needs rewind_to=, the state dict of the rewind point",
    ),
    (
        lambda t: ow.cycle(net(), imp(density=0.5), lambda m, r: None, rewind_to={}),
        RecipeError,
        "rewind_to must be a state dict of this model",
    ),
    (
        lambda t: Cycle(net(), Recipe("made", Element(), DropGrow(), Rounds(0.5, 2))),
        RecipeError,
        "gates and step gradients need ow.attach, not ow.cycle",
    ),
    (
        lambda t: held("9.weight", torch.ones(2) > 0),
        OpenworkError,
        "9.weight: the masks name it but Sequential has no such parameter",
    ),
    (
        lambda t: held("0.weight", torch.ones(2) > 0),
        OpenworkError,
        r"0.weight: the mask has shape \(2,\), the parameter \(12, 8\)",
    ),
    (lambda t: after_detach(), OpenworkError, r"finish\(\) after detach\(\), which gave up the run; attach again"),
    (
        lambda t: Cycle(net(), imp(density=0.5, rewind="none")).finish(),
        DensityMissed,
        r"finish\(\) after 0 of 4 rounds; call prune_round",
    ),
    (
        lambda t: prune(Bad(lambda n: {k: u.float() for k, u in n.units.items()})),
        RecipeError,
        "the rule must answer with bool units of shape",
    ),
    (lambda t: through_gates(), RecipeError, "cannot look through gates; take relaxation=None or another criterion"),
    (lambda t: late_gates(), RecipeError, "that no earlier scheduler knows; make the scheduler after ow.attach"),
    (lambda t: build_model("nowhere"), RecipeError, "neither a name of the zoo, nor a folder with config.json"),
    (lambda t: ow.recalibrate(net(), [BATCH], 0), RecipeError, "recalibrate: batches must be at least 1, got 0"),
    (lambda t: prune(Bad()), DensityMissed, "density 0.5 promises 72 to 72 of 144 units, but 144 are kept"),
    (
        lambda t: prune(
            Bad(
                lambda n: {k: torch.arange(u.numel()) % 2 == 0 for k, u in n.units.items()},
                {"0.weight": torch.full((12, 8), math.nan)},
            )
        ),
        DivergedError,
        "0.weight: the rule returned NaN or infinite weights; nothing was written for it",
    ),
    (lambda t: wrong_save(t), VerificationFailed, "save the model that was pruned"),
    # methods
    (lambda t: magnitude(scope="all"), RecipeError, "scope must be 'layer', 'global' or 'erk', got 'all'"),
    (lambda t: acdc(on_decompress="halve"), RecipeError, "acdc: on_decompress must be 'zero' or 'keep', got 'halve'"),
    (
        lambda t: gradual_magnitude(masked="no"),
        RecipeError,
        "gradual_magnitude: masked must be 'zero' or 'freeze', got 'no'",
    ),
    (lambda t: imp(rate=1.0), RecipeError, r"imp: rate must be a share in \(0, 1\), got 1.0"),
    (
        lambda t: sequential_attention_pp(schedule="imgnet"),
        RecipeError,
        "schedule must be 'imagenet', 'criteo' or stretches, got 'imgnet'",
    ),
    (lambda t: ow.methods.get("spod"), RecipeError, "unknown method 'spod'; did you mean 'spode'"),
]


@pytest.mark.parametrize(("call", "error", "message"), ROWS, ids=[m[:40] for _, _, m in ROWS])
def test_refused_with_these_words(call, error, message, tmp_path):
    with pytest.raises(error, match=message):
        call(tmp_path)


def test_synaptic_flow_names_overflow():
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    model.double()
    for layer in model:
        nn.init.constant_(layer.weight, 1e307)
    with pytest.raises(DivergedError, match="SynapticFlow: the flow overflows float64; scale the weights down"):
        ow.prune(model, ow.methods.get("synflow")(density=0.5, input_shape=(64,)))


def test_a_gate_needs_partitions_of_one_tensor():
    from openwork.engine.gates import Gates

    part = SimpleNamespace(members=("a", "b"))
    session = SimpleNamespace(parts={"p": part}, recipe=SimpleNamespace(density=0.5))
    with pytest.raises(RecipeError, match="p: gates need partitions of one tensor each, got 2"):
        Gates(net(), session, sequential_attention_pp().relaxation, None)


def test_attention_that_diverged_is_named():
    model = net()
    optimizer = sgd(model)
    run = ow.attach(
        model, sequential_attention_pp(density=0.5, structure=Block(2, 2), steps=60, min_blocks=2), optimizer
    )
    with torch.no_grad():
        run._gates._gates["0.weight"].logits[0] = math.nan
    with pytest.raises(DivergedError, match="0.weight: attention logits became NaN or infinite"):
        run._gates.learned()


def test_fuzzed_recipe_files_raise_nothing_else(tmp_path):
    """Every mutation of a valid recipe is either read or refused with an error of ours."""
    import random

    rng, base = random.Random(0), rigl(density=0.3).to_dict()
    junk = [None, -1, 0, 1e99, "x", [], {}, {"kind": "Element"}, {"kind": "Recipe"}, True, [[[[1]]]], {"kind": 3}]

    def mutate(value):
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            if rng.random() < 0.1:
                return {k: v for k, v in value.items() if k != key}
            return {**value, key: mutate(value[key])}
        return rng.choice(junk)

    for _ in range(1500):
        data = mutate(base)
        with contextlib.suppress(OpenworkError):
            Recipe.from_dict(json.loads(json.dumps(data)))
