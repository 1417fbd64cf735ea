"""Errors of criteria, statistics, rules, engines and methods, word by word."""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from tests.unit.refusing import (
    BATCH,
    Bad,
    Head,
    Other,
    Transposed,
    after_detach,
    attach_untrained,
    dead_layer,
    early,
    foreign_state,
    grow_on_nan,
    held,
    keep_infinite,
    late_gates,
    net,
    now,
    one,
    prune,
    sgd,
    through_gates,
    wrong_save,
)
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.batches import Feed, loss_on
from openwork.core.protocols import Gate
from openwork.core.recipe import Recipe
from openwork.criteria import Learned, Magnitude, Saliency, StepGradient, WeightTimesInput
from openwork.engine.cycle import Cycle
from openwork.errors import (
    DensityMissed,
    DivergedError,
    MissingStatistic,
    OpenworkError,
    RecipeError,
    VerificationFailed,
)
from openwork.methods import acdc, gradual_magnitude, imp, magnitude, rigl, sequential_attention_pp, snip
from openwork.rules.drop_grow import ConstantFraction, CosineFraction, DropGrow
from openwork.rules.topk import Repeat, TopK
from openwork.schedules import OneShot, Periodic, Phases, Rounds, Stretch
from openwork.stats import GradientFlow, InputSquares, LossGradient, SynapticFlow, UnitImportance
from openwork.structure import NM, Block, Element
from openwork.zoo import build_model

ROWS = [
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
    (lambda t: UnitImportance(0), RecipeError, "UnitImportance: batches must be at least 1, got 0"),
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
        "unused.weight: its inputs were never seen .1 tensors.",
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
        "SynapticFlow sends ones through the network, so it needs real-valued inputs, got torch.int64; pass",
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
    (lambda t: keep_infinite(), DivergedError, "0.weight: 1 of 96 scores are NaN or infinite in the sparse phase"),
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


def test_a_gate_that_replaces_weights_needs_one_tensor():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    coupled = ow.channels(example=torch.zeros(1, 6))
    recipe = ow.methods.powerpropagation(density=0.5, structure=coupled, steps=10)
    wanted = r"replaces the weights of one tensor, but the units lie in \d+ coupled ones; take a method"
    with pytest.raises(RecipeError, match=wanted):
        ow.attach(model, recipe, sgd(model))


def test_attention_that_diverged_is_named():
    model = net()
    optimizer = sgd(model)
    run = ow.attach(
        model, sequential_attention_pp(density=0.5, structure=Block(2, 2), steps=60, min_blocks=2), optimizer
    )
    with torch.no_grad():
        run._gates._gates["0.weight"].logits[0] = math.nan
    with pytest.raises(DivergedError, match="0.weight: attention logits became NaN or infinite in the soften phase"):
        run._gates.learned("soften")


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
