"""A run that is stopped after any block, or killed, goes on and gives the same bits; anything else is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.unit.llm import tiny

from openwork.errors import FileError
from openwork.llm import prune_blockwise
from openwork.methods import sparsegpt


class Stopped(Exception):
    pass


def stop_after(count):
    def watch(stage, done, of, error):
        if done == count:
            raise Stopped

    return watch


def run(source, out, **options):
    return prune_blockwise(source, sparsegpt(0.5), tiny.ids(), out=out, **options)


def files(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name != "openwork.json"}


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopping_after_a_block_and_going_on_equals_not_stopping(stop, root, tmp_path):
    source = tiny.saved("tied", root)
    whole = run(source, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(source, tmp_path / "out", watch=stop_after(stop))
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileError, match=r"out\.partial: holds a stopped run; go on with resume=True"):
        run(source, tmp_path / "out")
    result = run(source, tmp_path / "out", resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert result.kept == whole.kept
    assert [b["error"] for b in result.blocks] == [b["error"] for b in whole.blocks]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from tests.unit.llm import tiny
from openwork.llm import prune_blockwise
from openwork.methods import sparsegpt
import time
def watch(stage, done, of, error):
    print(done, flush=True)
    time.sleep(0.3)
prune_blockwise(sys.argv[1], sparsegpt(0.5), tiny.ids(), out=sys.argv[2], resume=True, watch=watch)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(root, tmp_path):
    source = tiny.saved("tied", root)
    run(source, tmp_path / "whole")
    checkout = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": f"{checkout / 'src'}{os.pathsep}{checkout}"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(source), str(tmp_path / "out")], stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout.readline().strip() == "1"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "out.partial" / "state.json").is_file()
    run(source, tmp_path / "out", resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def stopped(source, out):
    with pytest.raises(Stopped):
        run(source, out, watch=stop_after(1))
    return out.with_name("out.partial")


def test_another_run_is_not_continued(root, tmp_path):
    source = tiny.saved("tied", root)
    work = stopped(source, tmp_path / "out")
    before = files(work)
    other = [
        (dict(recipe=sparsegpt(0.4)), "recipe, shares"),
        (dict(calibration=tiny.ids(seed=9)), "calibration"),
        (dict(model=tiny.saved("llama", root)), "model, shares"),
        (dict(shares={"model.layers.1": 0.9}), "shares"),
        (dict(batch=2), "options"),
    ]
    for change, word in other:
        given = {"model": source, "recipe": sparsegpt(0.5), "calibration": tiny.ids(), **change}
        with pytest.raises(FileError, match=rf"out\.partial: the stopped run had another {word}; use the same"):
            prune_blockwise(out=tmp_path / "out", resume=True, **given)
    assert files(work) == before
    run(source, tmp_path / "out", overwrite=True)  # discards it
    assert not work.exists()


def test_damaged_states_are_refused(root, tmp_path):
    source = tiny.saved("tied", root)
    work = stopped(source, tmp_path / "out")
    shard, state = work / "block-00000.safetensors", work / "state.json"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(FileError, match="a finished block of the stopped run is damaged; start anew"):
        run(source, tmp_path / "out", resume=True)
    shard.unlink()
    with pytest.raises(FileError, match="a finished block of the stopped run is gone"):
        run(source, tmp_path / "out", resume=True)
    state.write_text(json.dumps({"done": 3}))
    with pytest.raises(FileError, match="not the state of a stopped run"):
        run(source, tmp_path / "out", resume=True)


def test_a_finished_result_is_only_replaced_when_told(root, tmp_path):
    source, out = tiny.saved("llama", root), tmp_path / "out"
    run(source, out)
    with pytest.raises(FileError, match=r"out: exists already; choose another folder or overwrite it"):
        run(source, out)
    run(source, out, overwrite=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(FileError, match=r"foreign: holds no openwork.json, so it will not be overwritten"):
        run(source, foreign, overwrite=True)
    assert (foreign / "letter.txt").read_text() == "dear"


def test_disks_that_refuse(root, tmp_path, monkeypatch):
    source = tiny.saved("llama", root)
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(FileError, match="file/out.partial: could not be created"):
        run(source, blocked / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda p: type("U", (), {"free": 10})())
    with pytest.raises(FileError, match=r"needs 0.1 MB of disk, but only 0.0 MB are free"):
        run(source, tmp_path / "out")
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(FileError, match="the activations could not be put on disk"):
        run(source, tmp_path / "out", memory=0)
    monkeypatch.undo()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="could not be written"):
        run(source, tmp_path / "other")
    monkeypatch.undo()
    run(source, tmp_path / "out", resume=True)  # nothing was lost
