"""Every verb under faults: after them the old outcome is there or a complete new one, with an error and no traceback."""

import contextlib
import random
import shutil

import pytest
import torch
from tests.unit.cli import faults
from tests.unit.cli.faults import NAMES, READ, command, files

from openwork.cli import main


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return faults.inputs(tmp_path_factory.mktemp("given") / "in")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    faults.one_process(monkeypatch)


def ready(verb, given):
    if verb in faults.NEEDS and not (given / faults.NEEDS[verb]).exists():
        pytest.skip(f"{verb} needs an optional package")


def refused(argv, capsys):
    """The one line that a failing verb prints."""
    capsys.readouterr()
    assert main(argv) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"openwork {argv[0]}: ")]
    assert len(said) == 1
    assert "Traceback" not in said[0]
    return said[0]


def done(verb, given, out):
    """The first outcome, which faults must not touch."""
    out.mkdir()
    assert main(command(verb, given, out)) == 0
    return files(out)


@pytest.mark.parametrize("verb", NAMES)
def test_a_full_disk(verb, given, tmp_path, capsys):
    ready(verb, given)
    before = done(verb, given, tmp_path / "out")
    argv = command(verb, given, tmp_path / "out")
    for room in (0, 300, 5_000, 50_000):
        with faults.full_disk(room):
            code = main(argv) if room else 2
            if code == 0:
                break  # there was room enough
            if code == 1:  # a comparison goes on without the cells that failed
                assert "failed: digits | dense | 1 | seed 0: FileError" in capsys.readouterr().out
                continue
            said = refused(argv, capsys)
        assert "File too large" in said or "cannot be written" in said, said
        if verb not in ("compare", "prune"):  # they have begun anew, as --overwrite asks; prune keeps its result
            assert files(tmp_path / "out") == before
        if verb == "prune":
            made = {n: c for n, c in before.items() if n.startswith("made/")}
            assert made.items() <= files(tmp_path / "out").items()
        assert faults.whole(files(tmp_path / "out"))
    assert main(argv) == 0
    assert files(tmp_path / "out").keys() == before.keys()


@pytest.mark.parametrize("verb", NAMES)
def test_a_folder_that_cannot_be_written(verb, given, capsys, tmp_path):
    ready(verb, given)
    if verb == "eval-llm":
        pytest.skip("its task names a file by its place, which another user cannot read here")
    shutil.copytree(given, tmp_path / "in")
    for place in (tmp_path, *tmp_path.parents[:3], *(tmp_path / "in").rglob("*")):
        place.chmod(0o755)
    with faults.read_only() as place:
        said = refused(command(verb, tmp_path / "in", place), capsys)
        assert "ermission denied" in said or "not a folder that can be written" in said, said
        assert not list(place.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("verb", [name for name in NAMES if name != "compare"])
def test_killed_while_writing(verb, given, tmp_path):
    """Comparisons are killed in tests of their own."""
    ready(verb, given)
    out, read = tmp_path / "out", files(given)
    before = done(verb, given, out)
    argv = command(verb, given, out)
    for moment in range(60):
        dead = faults.killed(argv, moment)
        after = files(out)
        assert faults.whole(after), f"half a file after {moment} touches"
        assert after.keys() >= before.keys(), f"something is lost after {moment} touches"
        if not dead:
            break
    assert moment > 0
    assert files(given) == read
    assert main(argv) == 0
    assert files(out).keys() == before.keys()
    assert not [p.name for p in out.rglob(".*")], "what killed runs left is still there"


@pytest.mark.parametrize("verb", READ)
def test_damaged_input(verb, given, tmp_path, capsys):
    ready(verb, given)
    rng = random.Random(0)
    for name in READ[verb]:
        place = tmp_path / name.replace("/", "-")
        shutil.copytree(given, place)
        content = (given / name).read_bytes()
        damages = [b"", content[: len(content) // 2], b"\xff" * 64]
        if name.startswith("result/"):  # one bit; other files carry no checksum
            at = rng.randrange(len(content))
            damages += [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]] * (not name.endswith("json"))
        for damage in damages:
            (place / name).write_bytes(damage)
            out = tmp_path / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            said = refused(command(verb, place, out), capsys)
            assert len(said) < 3_000
            assert not files(out)


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_loss_that_is_no_number_at_some_step(at, given, tmp_path, capsys, monkeypatch):
    from openwork.lab import runner

    before = done("prune", given, tmp_path / "out")
    argv = command("prune", given, tmp_path / "out")
    real, seen = runner.cross_entropy, []

    def sometimes(*args, **kwargs):
        seen.append(at)
        return real(*args, **kwargs) * (float("nan") if len(seen) == at + 1 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "cross_entropy", sometimes)
        said = refused([*argv, "--save-every", "0"], capsys)
    assert f"the loss is nan at step {at % 3}" in said or "the loss is nan at step" in said
    after = files(tmp_path / "out")
    assert {n: c for n, c in after.items() if n.startswith("made/")}.items() <= before.items()
    assert main([*argv[: argv.index("--overwrite")], "--overwrite", "--resume", *argv[argv.index("--json") :]]) == 0


def test_weights_that_are_no_numbers(given, tmp_path, capsys):
    """Language models are read from files; a NaN in one must not become a model or a perplexity."""
    ready("prune-llm", given)
    from safetensors.torch import load_file, save_file

    place = tmp_path / "in"
    shutil.copytree(given, place)
    tensors = load_file(place / "llama" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, place / "llama" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    said = refused(command("prune-llm", place, tmp_path / "out"), capsys)
    assert "model.layers.1.mlp.up_proj.weight: weights must be finite, got NaN or infinity" in said
    assert "nan" in refused(command("perplexity", place, tmp_path / "out"), capsys).lower()


def test_no_verb_reads_a_clock_that_can_jump():
    """Durations come from monotonic clocks, so that a clock that is set back changes no outcome."""
    from pathlib import Path

    import openwork

    for file in Path(openwork.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [w for w in ("time.time(", "datetime.now", "datetime.utcnow", "date.today") if w in text], file


@pytest.mark.parametrize("verb", NAMES)
def test_jumping_clocks(verb, given, tmp_path, monkeypatch):
    import time

    ready(verb, given)
    jumps = iter(10**9 * (-1) ** i for i in range(10**9))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    assert faults.whole(done(verb, given, tmp_path / "out"))


def test_the_same_command_gives_the_same_bits(given, tmp_path):
    """Everything but the times: weights, masks, and what openwork.json says."""
    import json

    torch.manual_seed(5)
    one = done("prune", given, tmp_path / "one")
    torch.manual_seed(6)  # a seed of the caller is none of the job's business
    two = done("prune", given, tmp_path / "two")
    for name in ("made/model.safetensors", "made/masks.safetensors"):
        assert one[name] == two[name]
    said = [json.loads(found["told.json"]) for found in (one, two)]
    for data in said:
        data["manifest"].pop("seconds")
    assert said[0] == said[1]
    with contextlib.suppress(KeyError):
        assert said[0]["manifest"]["seed"] == 0
