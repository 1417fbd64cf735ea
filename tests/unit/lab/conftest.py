"""Fixtures of the comparison tests."""

import pytest
from tests.unit.lab.tiny import TINY, Local

from openwork.lab import pool
from openwork.lab.compare import compare
from openwork.lab.suite_file import read_suite


@pytest.fixture
def local(monkeypatch):
    """Workers without processes, for tests that are not about processes."""
    monkeypatch.setattr(pool.Pool, "_process", lambda self: Local())


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """The tiny suite, run without a disturbance."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, compare(read_suite(TINY), out, jobs=1, command="openwork compare suite.yaml")
