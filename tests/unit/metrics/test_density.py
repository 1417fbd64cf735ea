"""One count, three denominators."""

import pytest
import torch
from torch import nn

from openwork.errors import VerificationFailed
from openwork.metrics import Densities, densities


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def masks(model, **kept):
    made = {}
    for name, k in kept.items():
        param = model.get_parameter(f"{name}.weight")
        made[f"{name}.weight"] = (torch.arange(param.numel()) < k).reshape(param.shape)
        with torch.no_grad():
            param.mul_(made[f"{name}.weight"])
    return made


def test_three_denominators_by_hand():
    model = Tied()
    d = densities(model, masks(model, fc=4))
    assert d == Densities(kept=4, targeted_numel=16, prunable_numel=16, total_numel=20 + 16 + 4)
    assert (d.targeted, d.prunable, d.total) == (0.25, 0.25, 1 - 12 / 40)
    model = Tied()
    d = densities(model, masks(model, embed=5))
    assert d == Densities(kept=5, targeted_numel=20, prunable_numel=36, total_numel=40)
    assert d.prunable == 1 - 15 / 36
    assert d.to_dict()["prunable"] == d.prunable


def test_nothing_targeted_is_dense():
    d = densities(nn.LayerNorm(3), {})
    assert (d.targeted, d.prunable, d.total) == (1.0, 1.0, 1.0)


def test_pruned_entries_must_be_zero_in_the_model():
    model = Tied()
    made = masks(model, fc=4)
    with torch.no_grad():
        model.fc.weight[3, 2:] = torch.tensor([1.0, float("nan")])
    with pytest.raises(VerificationFailed, match="fc.weight: 2 entries that the mask prunes are not zero in the model"):
        densities(model, made)
    assert densities(model, made, written=False).kept == 4


def test_masks_of_another_model_are_refused():
    wrong = {"fc.weight": torch.ones(2, 2, dtype=torch.bool)}
    with pytest.raises(VerificationFailed, match=r"fc.weight: the model has no such parameter of shape \(2, 2\)"):
        densities(Tied(), wrong)
    for mask in (torch.full((4, 4), 2), torch.rand(4, 4)):
        with pytest.raises(
            VerificationFailed, match=r"fc.weight: densities are counted from bool masks, got torch\.\w+;"
        ):
            densities(Tied(), {"fc.weight": mask}, written=False)
    with pytest.raises(VerificationFailed, match="x: the model has no such parameter"):
        densities(Tied(), {"x": wrong["fc.weight"]}, written=False)
