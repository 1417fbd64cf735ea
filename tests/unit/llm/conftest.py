"""transformers is optional, noisy and slow to import; tiny models are saved once."""

import pytest

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'openwork[hf]'")


@pytest.fixture(scope="session", autouse=True)
def quiet():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("models"))
