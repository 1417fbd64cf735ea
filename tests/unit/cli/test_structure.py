"""``openwork prune --structure channels --macs 0.5``: prune, cut, prove, fine-tune, save, load elsewhere."""

import json
import subprocess
import sys

import pytest

import openwork as ow
from openwork.cli.main import main
from openwork.errors import RecipeError
from openwork.lab import Job
from openwork.structure.words import structure_of

SHORT = ["--data", "digits", "--model", "mlp", "--epochs", "1", "--finetune-epochs", "1", "--threads", "1"]


def told(path):
    return json.loads(path.read_text())


def test_a_smaller_model_that_another_process_loads(tmp_path, capsys):
    out = tmp_path / "small"
    args = ["prune", *SHORT, "--structure", "channels", "--macs", "0.5", "--out", str(out)]
    assert main([*args, "--json", str(tmp_path / "o.json")]) == 0
    text = capsys.readouterr().out
    data = told(tmp_path / "o.json")
    cut, met = data["manifest"]["compaction"], data["manifest"]["target_met"]
    assert abs(cut["macs"][1] / cut["macs"][0] - 0.5) <= 0.005
    assert met["reached"] == cut["macs"][1]
    assert cut["max_error"] <= 1e-5 * max(1, cut["largest"])
    assert f"multiply-accumulates  {cut['macs'][0]:,} -> {cut['macs'][1]:,}" in text
    assert "outputs equal to" in text
    assert "The pruned units were cut out" in text
    assert data["metrics"]["compacted"]["accuracy"] == pytest.approx(data["metrics"]["pruned"]["accuracy"])
    code = "import openwork as ow, sys; print(sum(p.numel() for p in ow.load(sys.argv[1])[0].parameters()))"
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == cut["params"][1]
    assert main(["inspect", str(out)]) == 0


def test_training_methods_and_zeros_in_place(tmp_path):
    args = ["prune", *SHORT, "--structure", "channels:4", "--params", "0.5", "--method", "gradual_magnitude"]
    assert main([*args, "--out", str(tmp_path / "a")]) == 0
    model, result = ow.load(tmp_path / "a")
    assert all(int(u.sum()) % 4 == 0 for u in result.units.values())
    assert sum(p.numel() for p in model.parameters()) == result.manifest["compaction"]["params"][1]
    args = [
        "prune",
        *SHORT,
        "--structure",
        "channels",
        "--density",
        "0.5",
        "--no-compact",
        "--out",
        str(tmp_path / "b"),
    ]
    assert main(args) == 0
    model, result = ow.load(tmp_path / "b")
    assert sum(p.numel() for p in model.parameters()) == result.counts.total_numel


def test_a_stopped_run_goes_on_with_the_small_model(tmp_path):
    from dataclasses import replace

    from openwork.lab import Budget, Runner

    job = Job("mlp", "digits", structure="channels", target={"macs": 0.5}, budget=Budget(1, 1, 64))
    whole, _ = Runner(job).run()

    class Stop(Exception):
        pass

    def watch(stage, step, *_):
        if stage == "finetune" and step == 5:
            raise Stop

    (tmp_path / "w").mkdir()
    with pytest.raises(Stop):
        Runner(job, tmp_path / "w", watch=watch, save_every=0).run()
    again, result = Runner(job, tmp_path / "w").run(resume=True)
    assert all((a == b).all() for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert result.manifest["target_met"]["unit"] == "macs"
    assert replace(job, target=None).target is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--structure", "channels", "--macs", "0.5", "--density", "0.5"], "takes the place of density=0.5"),
        (["--structure", "channels", "--macs", "50"], "50 % is 0.5"),
        (["--structure", "channels", "--macs", "0.5", "--params", "0.5"], "must name one unit"),
        (["--structure", "element", "--macs", "0.5"], "needs a coupled structure"),
        (["--structure", "channels:x", "--macs", "0.5"], "must read channels or channels:MULTIPLE"),
        (["--structure", "chanels"], "did you mean 'channels'"),
    ],
)
def test_what_is_refused(args, message, tmp_path, capsys):
    assert main(["prune", *SHORT, *args, "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_word_needs_an_example():
    with pytest.raises(RecipeError, match="follows the graph of a model and needs an example of its input"):
        structure_of("heads:2")
