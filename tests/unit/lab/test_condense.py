"""Committed results say what was run, on what, and every denominator and cost that the comparison found."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from openwork.core.machine import processor
from openwork.lab import origin

ROOT = Path(__file__).parents[3]


@pytest.fixture
def condense(monkeypatch, tmp_path):
    """The script, writing below a folder of the test."""
    for place in ("bench", "docs"):
        monkeypatch.syspath_prepend(str(ROOT / place))
    import common
    import condense

    (tmp_path / "reports").mkdir()
    monkeypatch.setattr(condense, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    yield condense
    for name in ("condense", "common", "tables", "comparisons"):
        sys.modules.pop(name, None)


def test_a_condensed_result_says_what_produced_it(condense, done, tmp_path):
    out, results = done
    condense.main(out, "oneshot_tiny", "Tiny", True, False)
    found = json.loads((tmp_path / "results" / "oneshot_tiny.json").read_text())
    assert found["suite"] == results["suite"]
    assert found["suite"]["seeds"] == [0, 1]
    assert found["suite_sha256"] == results["manifest"]["suite_sha256"]
    assert found["machine"]["cpu"] == processor()
    assert found["machine"]["threads"] == 1
    for short, row in zip(found["rows"], results["rows"], strict=True):
        assert all(short[k] == row[k] for k in ("method", "density", "lr", "parameters", "finetuned", "pruned"))
        assert short.get("lr_at_edge", False) == row["lr_at_edge"]
        assert {k: short[k] for k in ("macs", "bytes", "training_macs")} == {
            k: row[k] for k in ("macs", "bytes", "training_macs")
        }
        for name, share in short["reached"].items():
            assert share == pytest.approx(row["reached"][name], abs=1e-6)
    assert set(found["rows"][-1]["reached"]) == {"targeted", "prunable", "total", "effective"}
    assert {r["lr_at_edge"] for r in found["rows"] if "lr_at_edge" in r} == {True}  # a grid of two


def test_sanity_rows_tell_both_checks(condense, done, tmp_path):
    results = json.loads((done[0] / "results.json").read_text())
    told = {"setting": "digits", "method": "spode", "density": 0.1, "own": 0.9, "control": 0.8, "seeds": 3}
    results["sanity"] = [
        {**told, "check": "mask shuffled", "gain": 0.1, "std": 0.01, "verdict": "better"},
        {**told, "check": "weights drawn anew", "gain": 0.004, "std": None, "verdict": "one seed"},
    ]
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "results.json").write_text(json.dumps(results))
    condense.main(tmp_path / "o", "sanity_tiny", "Tiny", True, False, sanity=True)
    found = json.loads((tmp_path / "results" / "sanity_tiny.json").read_text())
    (row,) = found["rows"]
    from tables import SECTIONS

    shown = SECTIONS["sanity_digits"](found)
    assert shown.rows == [["spode", "0.1", "90.0", "10.0 ± 1.0", "yes", "0.4", "no"]]
    assert len(shown.columns) == len(shown.rows[0])
    assert row["setting"] == "digits"


def test_the_machine_is_that_of_the_run(condense, done, tmp_path):
    results = json.loads((done[0] / "results.json").read_text())
    results["manifest"] |= {"processors": ["One", "Other"], "commits": ["abc"]}
    for cell in results["cells"]:
        cell |= {"threads": 3, "torch": "9.9"}
    results["suite"]["settings"][0]["checkpoint"] = "/home/me/weights.safetensors"
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "results.json").write_text(json.dumps(results))
    condense.main(tmp_path / "o", "oneshot_tiny", "Tiny", True, False)
    found = json.loads((tmp_path / "results" / "oneshot_tiny.json").read_text())
    assert found["machine"]["cpu"] == "One, Other"
    assert (found["machine"]["threads"], found["machine"]["torch"], found["commits"]) == (3, "9.9", ["abc"])
    assert found["suite"]["settings"][0]["checkpoint"] == "weights.safetensors"
    del results["manifest"]["processors"]  # an older folder
    assert condense.machine_of(results)["cpu"] == f"{results['manifest']['machine']} (processor not recorded)"
    with pytest.raises(SystemExit, match="the comparison is not complete; go on with openwork compare --resume"):
        condense.main(tmp_path / "o", "oneshot_tiny", "Tiny", False, False)


def test_tables_star_the_rates_at_an_edge(condense, done, tmp_path):
    import tables

    condense.main(done[0], "oneshot_tiny", "Tiny", True, False)
    found = json.loads((tmp_path / "results" / "oneshot_tiny.json").read_text())
    for row in found["rows"]:
        row["lr_at_edge"] = row["method"] == "magnitude"
    shown = tables._comparison(found)
    rates, sizes = shown.columns.index("learning rate"), shown.columns.index("parameters")
    starred = {cells[0] for cells in shown.rows if cells[rates].endswith("\\*")}
    assert starred == {"magnitude"}
    assert sizes == shown.columns.index("density") + 1
    assert shown.rows[0][sizes] == f"{found['rows'][0]['parameters']:,}"
    assert f"2 of {len(found['rows'])} tuned rates lie at an edge of their grid (\\*)" in shown.text
    for row in found["rows"]:
        del row["lr_at_edge"]
    assert "was not kept with this result" in tables._comparison(found).text


def test_manifests_name_processor_and_commit(done):
    manifest, records = done[1]["manifest"], done[1]["cells"]
    assert manifest["processors"] == [processor()]
    assert manifest["threads"] == [1]
    assert manifest["commits"] == [c for c in [origin.commit()] if c]
    assert {r["cpu"] for r in records} == {processor()}


def test_a_commit_is_that_of_a_checkout_that_tracks_the_package(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert origin.commit(package) is None
    git = ["-c", "user.name=a", "-c", "user.email=a@b"]
    assert origin._git(tmp_path, "init") is not None
    origin.commit.cache_clear()
    assert origin.commit(package) is None  # inside a checkout of something else
    assert origin._git(tmp_path, "add", ".") is not None
    assert origin._git(tmp_path, *git, "commit", "-m", "one") is not None
    origin.commit.cache_clear()
    head = origin.commit(package)
    assert head is not None
    assert len(head) == 40
    (package / "__init__.py").write_text("1\n")
    origin.commit.cache_clear()
    assert origin.commit(package) == f"{head}+changes"
    origin.commit.cache_clear()


def test_processors_are_named(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("vendor_id\t: x\nmodel name\t: Some CPU\n")
    assert processor(info) == "Some CPU"
    assert processor(tmp_path / "none")


def test_top5_stands_in_the_table(condense, done, tmp_path):
    import tables

    results = json.loads((done[0] / "results.json").read_text())
    for row in results["rows"][1:]:
        row["top5"] = {"mean": 0.75, "std": 0.01, "values": [0.74, 0.76]}
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "results.json").write_text(json.dumps(results))
    condense.main(tmp_path / "o", "oneshot_tiny", "Tiny", True, False)
    found = json.loads((tmp_path / "results" / "oneshot_tiny.json").read_text())
    shown = tables._comparison(found)
    at = shown.columns.index("top-5")
    assert shown.columns[at - 1] == "at the end"
    assert [r[at] for r in shown.rows] == ["", *["75.0 ± 1.0"] * (len(shown.rows) - 1)]
