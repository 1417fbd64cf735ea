"""One thread, one seed, and the optional asset folder."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENWORK_CACHE", "")  # no measured plan is kept on disk

import pytest
import torch

from openwork.data.places import assets_folder

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same global seed; a test about seeds sets its own."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assets():
    """The folder of real models and data."""
    folder = assets_folder()
    if folder is None:
        pytest.skip("no asset folder: set OPENWORK_ASSETS to the folder with resnet20_cifar10.safetensors")
    return folder
