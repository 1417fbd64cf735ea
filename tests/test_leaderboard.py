"""The page of the committed results: places tell apart what the seeds tell apart, and nothing is counted twice."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def leaderboard(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import leaderboard

    yield leaderboard
    sys.modules.pop("leaderboard", None)


def row(method, values, **more):
    mean = sum(values) / len(values)
    return {"method": method, "density": 0.1, "finetuned": {"mean": mean, "std": 0.01, "values": values}, **more}


def test_places_are_beyond_the_noise(leaderboard):
    rows = [
        row("steady", [0.90, 0.91, 0.92]),
        row("near", [0.89, 0.92, 0.905]),
        row("behind", [0.80, 0.81, 0.82]),
        row("short", [0.99]),
        row("sparser", [0.5, 0.5, 0.5], density=0.01),
    ]
    found = leaderboard.entries({"oneshot_fashion": {"dense": {"mean": 0.95}, "rows": rows}})
    assert {e.method: e.place for e in found} == {"steady": 1, "near": 1, "behind": 3, "short": 1, "sparser": 1}
    assert {e.rivals for e in found if e.density == 0.1} == {4}
    assert found[0].dense == 0.95


def test_the_committed_page_says_where_its_rows_come_from(leaderboard):
    told = json.loads((ROOT / "docs" / "reports" / "leaderboard.json").read_text())
    known = {p.stem for p in (ROOT / "bench" / "results").glob("*.json")}
    assert {r["bench"] for r in told["rows"]} <= known
    for data, found in told["data"].items():
        mine = [r for r in told["rows"] if r["data"] == data and r["role"] == "method"]
        assert found["methods"] == len({r["method"] for r in mine})
        assert not any(r["method"].startswith(("dense", "small dense")) for r in mine)
    page = (ROOT / "docs" / "reports" / "leaderboard.html").read_text()
    assert all(f"{found['methods']} methods" in page for found in told["data"].values())
    assert "Rows of one bench had one budget" in page
