"""Comparisons of one suite on several machines become one."""

import copy
import json
import shutil

import pytest
from tests.unit.lab.tiny import TINY

from openwork.errors import FileError
from openwork.lab.cells import cells_of
from openwork.lab.compare import compare
from openwork.lab.facts import facts_of
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import without_times


def halves(done, tmp_path):
    """Two folders with every second cell each, as if two machines had been stopped."""
    out, _ = done
    made = [tmp_path / "one", tmp_path / "two"]
    files = sorted((out / "cells").glob("*.json"))
    for i, folder in enumerate(made):
        (folder / "cells").mkdir(parents=True)
        shutil.copy(out / "suite.json", folder)
        shutil.copytree(out / "dense", folder / "dense")
        for file in files[i::2]:
            shutil.copy(file, folder / "cells")
    return made


def test_two_halves_are_the_whole(done, tmp_path):
    out, results = done
    ran = []
    merged = compare(
        read_suite(TINY),
        tmp_path / "all",
        jobs=1,
        merge=halves(done, tmp_path),
        watch=lambda event, what: ran.append(what["key"]) if event == "done" else None,
    )
    assert ran == []
    assert without_times(merged)["rows"] == without_times(results)["rows"]
    assert sorted(p.name for p in (tmp_path / "all" / "cells").iterdir()) == sorted(
        p.name for p in (out / "cells").iterdir()
    )


def test_merging_refuses_what_does_not_belong(done, tmp_path):
    one, two = halves(done, tmp_path)
    with pytest.raises(
        FileError, match="nowhere: holds no comparison to merge; give the folder of an openwork compare"
    ):
        compare(read_suite(TINY), tmp_path / "a", merge=[tmp_path / "nowhere"])
    assert not (tmp_path / "a").exists()
    other = copy.deepcopy(json.loads((two / "suite.json").read_text()))
    other["suite"]["densities"] = [0.3]
    (two / "suite.json").write_text(json.dumps(other))
    with pytest.raises(
        FileError, match=r"two: was made from another suite or other data \(densities\); merge comparisons"
    ):
        compare(read_suite(TINY), tmp_path / "b", merge=[one, two])
    assert not (tmp_path / "b" / "cells").exists()
    record = next((one / "cells").glob("*.json"))
    shutil.copytree(one, tmp_path / "three")
    changed = json.loads(record.read_text())
    changed["status"] = "collapsed" if changed["status"] == "done" else "done"
    (tmp_path / "three" / "cells" / record.name).write_text(json.dumps(changed))
    with pytest.raises(FileError, match="of the same cell; merge only one of the two folders"):
        compare(read_suite(TINY), tmp_path / "c", merge=[one, tmp_path / "three"])


def test_a_density_or_a_seed_each_makes_the_cells_of_the_whole(done, tmp_path):
    whole = read_suite(TINY)
    facts = facts_of(whole)
    cells = {c.key: c for c in cells_of(whole, facts)}
    found = set()
    for part in (whole.only(densities=[0.5]), whole.only(densities=[0.05], seeds=[1])):
        mine = cells_of(part, facts_of(part))
        assert all(cells[c.key] == c for c in mine)
        found |= {c.key for c in mine}
    assert {"digits | magnitude | 0.5 | seed 0", "digits | gradual | 0.05 | seed 1"} <= found < set(cells)


def test_folders_of_fewer_densities_are_taken(done, tmp_path):
    results = done[1]
    for one in halves(done, tmp_path):
        told = json.loads((one / "suite.json").read_text())
        told["suite"].update(densities=[0.05], seeds=[1])
        (one / "suite.json").write_text(json.dumps(told))
    merged = compare(read_suite(TINY), tmp_path / "all", jobs=1, merge=[tmp_path / "one", tmp_path / "two"])
    assert without_times(merged)["rows"] == without_times(results)["rows"]
    told["suite"].update(seeds=[1, 7])
    (one / "suite.json").write_text(json.dumps(told))
    with pytest.raises(FileError, match=r"was made from another suite or other data \(seeds\)"):
        compare(read_suite(TINY), tmp_path / "b", merge=[one])


def test_folders_of_fewer_methods_are_taken_where_the_controls_are_the_same(done, tmp_path, local):
    ran = []
    more = {**TINY, "methods": {**TINY["methods"], "snip": None}}
    merged = compare(
        read_suite(more),
        tmp_path / "all",
        jobs=1,
        merge=[done[0]],
        watch=lambda event, what: ran.append(what["key"]) if event == "done" else None,
    )
    assert len(ran) == 2 * (2 + 2)  # at each density two learning rates, then two seeds
    assert all(" | snip | " in key for key in ran)
    rows = without_times(merged)["rows"]
    assert [r for r in rows if r["method"] != "snip"] == without_times(done[1])["rows"]
    for methods in (
        {"blocks": {"method": "magnitude", "structure": "block:4x4"}, **TINY["methods"]},
        {"magnitude": {"options": {"scope": "layer"}}, "gradual": "gradual_magnitude"},
        {"magnitude": None},
    ):
        with pytest.raises(FileError, match=r"was made from another suite or other data \(methods\)"):
            compare(read_suite({**TINY, "methods": methods}), tmp_path / "b", merge=[done[0]])
