"""Checkpoints: nested state through one file, and damage."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.errors import FileError
from openwork.lab.checkpoint import load_state, save_state

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(plain)
def test_plain_data_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("c") / "s.safetensors"
    save_state(path, {"value": value})
    assert load_state(path) == {"value": value}


def test_tensors_come_back_bit_for_bit(tmp_path):
    state = {
        "a": torch.randn(3, 4),
        "b": [torch.arange(3), {"c": torch.tensor(True), 7: torch.randn(2, dtype=torch.bfloat16)}],
    }
    state["view"] = state["a"].t()
    save_state(tmp_path / "s", state)
    again = load_state(tmp_path / "s")
    assert torch.equal(again["a"], state["a"])
    assert torch.equal(again["view"], state["view"])
    assert torch.equal(again["b"][0], state["b"][0])
    assert torch.equal(again["b"][1][7], state["b"][1][7])
    assert again["b"][1]["c"].dtype == torch.bool


def test_optimiser_state_comes_back(tmp_path):
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", optimizer.state_dict())
    again = torch.optim.AdamW(model.parameters())
    again.load_state_dict(load_state(tmp_path / "s"))
    assert torch.equal(again.state[model.weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"])


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(FileError, match="a checkpoint holds tensors and plain data, got object"):
        save_state(tmp_path / "s", {"x": object()})
    assert not (tmp_path / "s").exists()


def test_damage_is_refused(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(FileError, match="no such checkpoint"):
        load_state(path)
    save_state(path, {"x": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match="corrupt or truncated checkpoint"):
        load_state(path)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(FileError, match="not a checkpoint of openwork"):
        load_state(path)
