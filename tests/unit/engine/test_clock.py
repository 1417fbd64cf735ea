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
    # tried: acted in every hook call -> Nested counted twice
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
    # tried: a plain depth counter -> the next step counted as inner
    w = torch.ones(2, requires_grad=True)
    optimizer = Nested([w], lr=0)
    calls, _ = ticks(optimizer)
    with pytest.raises(ValueError, match="no rate"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    w.sum().backward()
    optimizer.step()
    assert calls == ["before", "before", "after"]
