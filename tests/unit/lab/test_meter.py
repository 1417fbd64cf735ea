"""Training is counted by the formulas: each job against a count by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from openwork.data import load_data
from openwork.lab import Budget, Job, Runner
from openwork.lab.evaluate import evaluate
from openwork.metrics import step_macs

LAYERS = {"1.weight": (16, 64), "3.weight": (10, 16)}
DENSE = sum(a * b for a, b in LAYERS.values())
BUDGET = Budget(epochs=2, finetune_epochs=1, batch_size=64)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def run(data, method, density=0.1, at="pretrained", budget=BUDGET, **options):
    job = Job("mlp", "digits", method, density, options=options, budget=budget, at=at, model_options={"hidden": [16]})
    return Runner(job, data=data).run()[1]


def kept(result):
    return sum(t["kept"] for t in result.tensors if t["units"])


def test_pruning_a_trained_network_pays_for_its_training(digits):
    result, n = run(digits, "magnitude"), len(digits.x_train)
    assert result.manifest["training_macs"] == n * (2 * step_macs(DENSE) + step_macs(kept(result)))
    assert result.manifest["scoring_macs"] == 0


def test_a_mask_from_initialisation_never_trains_densely(digits):
    result, n = run(digits, "snip", at="init"), len(digits.x_train)
    assert result.manifest["training_macs"] == 3 * n * step_macs(kept(result))
    assert result.manifest["scoring_macs"] == 3 * 512 * DENSE


def test_rigl_pays_for_dense_gradients_when_it_updates_and_set_does_not(digits):
    n = len(digits.x_train)
    steps = 3 * math.ceil(n / 64)
    fixed, rigl = run(digits, "set", every=10), run(digits, "rigl", every=10)
    assert fixed.manifest["training_macs"] == 3 * n * step_macs(kept(fixed))
    updates = sum(entry["step"] > 0 for entry in rigl.log)
    assert 4 < updates < steps
    assert rigl.manifest["training_macs"] == 3 * n * step_macs(kept(rigl)) + 64 * updates * (DENSE - kept(rigl))


def test_a_falling_density_is_followed(digits):
    result, n = run(digits, "gradual_magnitude", begin=10, end=40, every=10), len(digits.x_train)
    entries = [(0, 1.0)] + [(e["step"], e["density"]) for e in result.log]
    steps, per_epoch = 3 * math.ceil(n / 64), math.ceil(n / 64)
    sizes = [64 if (s + 1) % per_epoch else n - 64 * (per_epoch - 1) for s in range(steps)]
    # all layers have the density of the log up to rounding
    want = sum(3 * DENSE * [d for at, d in entries if at <= s][-1] * size for s, size in enumerate(sizes))
    assert result.manifest["training_macs"] == pytest.approx(want, rel=2e-3)
    soft = run(digits, "str", end=0.5)
    assert soft.manifest["training_macs"] == 3 * n * step_macs(DENSE)


def test_random_search_counts_its_draws(digits):
    result = run(digits, "random_search", at="init", draws=7)
    assert result.manifest["scoring_macs"] == 7 * 512 * DENSE


def test_connections_are_counted(digits):
    result = run(digits, "random", density=0.02, at="init", scope="layer")
    assert result.manifest["connected"] < kept(result) == 25
    assert "effective" in result.report()


def test_calibration_by_hand():
    """Confidences 0.9 (right, right, wrong) and 0.6 (wrong): |2/3 - 0.9| 3/4 + 0.6 / 4."""

    class Sure(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return torch.cat([x, 1 - x], 1).log() * self.one

    x, y = torch.tensor([[0.9], [0.9], [0.9], [0.6]], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    found = evaluate(Sure(), x, y, batch_size=3)
    assert found["ece"] == pytest.approx(abs(2 / 3 - 0.9) * 3 / 4 + 0.6 / 4)
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(float(F.nll_loss(torch.cat([x, 1 - x], 1).log(), y)))
    assert evaluate(Sure(), torch.ones(4, 1), torch.zeros(4, dtype=torch.long))["ece"] == 0
