"""The clock of a run: one tick per outermost optimiser step."""

import pytest
import torch

from openwork.engine.clock import Clock


class Nested(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["lr"] == 0:
            raise ValueError("no rate")
        super().step(closure)


def ticks(optimizer):
    calls = []
    return calls, Clock(optimizer, lambda: calls.append("before"), lambda: calls.append("after"))


@pytest.mark.parametrize("kind", [torch.optim.SGD, Nested])
def test_a_step_counts_once(kind):
    w = torch.ones(2, requires_grad=True)
    torch.optim.SGD([w], lr=0.1)  # torch decorates SGD.step at the first instance of SGD itself
    optimizer = kind([w], lr=0.1)
    calls, clock = ticks(optimizer)
    for _ in range(3):
        w.sum().backward()
        optimizer.step()
    assert calls == ["before", "after"] * 3
    clock.remove()
    optimizer.step()
    assert len(calls) == 6


def test_a_step_that_raises_does_not_stop_the_clock():
    w = torch.ones(2, requires_grad=True)
    optimizer = Nested([w], lr=0)
    calls, _ = ticks(optimizer)
    with pytest.raises(ValueError, match="no rate"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    w.sum().backward()
    optimizer.step()
    assert calls == ["before", "before", "after"]


@pytest.mark.parametrize("kind", [torch.optim.SGD, Nested])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_computes_the_gradients_first(kind, by_name):
    w = torch.ones(2, requires_grad=True)
    torch.optim.SGD([w], lr=0.1)
    optimizer = kind([w], lr=0.1)
    seen = []
    clock = Clock(optimizer, lambda: seen.append(w.grad.tolist()), lambda: seen.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = w.sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert seen == [[1.0, 1.0], "after"]
    if kind is torch.optim.SGD:
        assert loss.item() == 2.0
    clock.remove()


def test_every_evaluation_of_a_closure_counts():
    w = torch.full((2,), 3.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=3)
    calls, _ = ticks(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (w**4).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert calls == ["before"] * 3 + ["after"]
