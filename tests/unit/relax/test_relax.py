"""Gates: their values, gradients and limits."""

import pytest
import torch

from openwork.core import views
from openwork.errors import RecipeError
from openwork.relax import Masking, SoftmaxAttention
from openwork.structure import Tiles

PART = Tiles("w", views.linear_view((4, 6)), (2, 2))
W = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def gate(density=0.25, **options):
    return SoftmaxAttention(**options).gate(PART, density)


def test_attention_starts_as_the_dense_network():
    assert torch.equal(gate()(W), W)


def test_attention_is_t_times_the_softmax():
    g = gate(clip=False)
    with torch.no_grad():
        g.logits.copy_(torch.linspace(-1, 1, 6))
    want = 6 * torch.softmax(torch.linspace(-1, 1, 6).double(), 0)
    torch.testing.assert_close(g.attention().double(), want, rtol=1e-6, atol=0)
    units = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    g.set_units(units)
    factor = (want * units).reshape(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(g(W).double(), W.double() * factor, rtol=1e-6, atol=0)
    assert float(g.attention().detach().mean()) == pytest.approx(1.0)
    assert torch.equal(g.learned(), g.logits.detach())


def test_gradients_against_central_differences():
    g = SoftmaxAttention(clip=False).gate(PART, 0.25)
    value = torch.randn(6, generator=torch.Generator().manual_seed(1))
    target = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))

    def energy(logits):
        with torch.no_grad():
            g.logits.copy_(logits)
        return (g(W.double()) * target).sum()

    energy(value).backward()
    for i in range(6):
        e = torch.zeros(6)
        e[i] = 1e-2
        with torch.no_grad():
            slope = (energy(value + e) - energy(value - e)) / 2e-2
        assert float(g.logits.grad[i]) == pytest.approx(float(slope), rel=1e-2, abs=1e-3)


def test_clipping():
    g = gate(density=0.25)
    with torch.no_grad():
        g.logits.copy_(torch.tensor([30.0, 0, 0, 0, 0, 0]))
    assert g.attention().tolist() == [4.0] + [0.25] * 5
    assert gate(clip=False).bounds is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_of_the_weight_stays(dtype):
    g = gate()
    assert g(W.to(dtype)).dtype == dtype
    assert g.logits.dtype == torch.float32
    assert Masking().gate(PART, 0.5)(W.to(dtype)).dtype == dtype


def test_large_logits_do_not_overflow():
    g = gate(clip=False)
    with torch.no_grad():
        g.logits.fill_(1000.0)
    assert torch.equal(g.attention(), torch.ones(6))


def test_masking_hides_weights_and_their_gradients():
    g = Masking().gate(PART, 0.5)
    w = W.clone().requires_grad_()
    assert torch.equal(g(w), w)
    g.set_units(torch.tensor([1, 0, 0, 0, 0, 0], dtype=torch.bool))
    g(w).sum().backward()
    assert w.grad.sum() == 4
    assert bool((w.grad[:2, :2] == 1).all())
    assert not list(g.parameters())
    assert g.learned() is None
    assert not g.state_dict()


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_learning_rates_must_be_positive(rate):
    with pytest.raises(RecipeError, match="SoftmaxAttention: learning_rate must be positive"):
        SoftmaxAttention(learning_rate=rate)


def test_what_comes_back_must_be_known():
    with pytest.raises(RecipeError, match="SoftmaxAttention: on_reactivate must be 'keep' or 'zero', got 'half'"):
        SoftmaxAttention(on_reactivate="half")
