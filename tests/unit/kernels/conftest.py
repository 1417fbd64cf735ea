"""Every instruction set of this processor, and the Python path."""

import sys

import pytest
from tests.unit.kernels.making import ISAS

from openwork.kernels.native import native


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Layouts and products of one instruction set."""
    if request.param == "python":
        for module in ("openwork.kernels.native", "openwork.kernels.ops"):
            monkeypatch.setattr(sys.modules[module], "native", lambda: None)
        yield "python"
        return
    module = native()
    before = module.isa()
    assert module.use(request.param)
    yield request.param
    module.use(before)
