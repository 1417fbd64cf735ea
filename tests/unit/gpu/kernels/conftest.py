"""The kernels themselves: on a GPU where there is one, else under Triton's interpreter on CPU tensors.

Without ``TRITON_INTERPRET=1`` and without a GPU nothing here is collected: ``test_interpreted.py`` runs these files in
processes of their own, because Triton reads the variable when it is imported.
"""

import importlib.util

import pytest
import torch

from openwork.gpu.interpreter import interpreted

if importlib.util.find_spec("triton") is None or not (interpreted() or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"
