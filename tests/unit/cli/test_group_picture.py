"""``openwork inspect --graph --svg``: rows are tensors, lines are groups, dots say where units are made and read."""

import base64
import copy
import re
import xml.etree.ElementTree as ET

import torch

import openwork as ow
from openwork.cli.main import main
from openwork.methods import magnitude
from openwork.report.group_picture import MOST_ROWS, Drawn, Place, group_picture

SVG = "{http://www.w3.org/2000/svg}"


def test_every_group_and_every_place_is_drawn(tmp_path, capsys):
    out = tmp_path / "g.svg"
    assert main(["inspect", "--model", "mlp", "--graph", "--input", "1x1x8x8", "--svg", str(out)]) == 0
    assert f"drawn in {out}" in capsys.readouterr().out
    root = ET.fromstring(out.read_text())
    graph = ow.build_graph(ow.build_model("mlp"), torch.zeros(1, 1, 8, 8))
    lines = root.findall(f"{SVG}line")
    assert len(lines) == len(graph.groups)
    dots = [c for c in root.findall(f"{SVG}circle") if c.find(f"{SVG}title") is not None]
    places = {(g.name, s.tensor) for g in graph.groups for s in g.sites if s.parameter}
    assert len(dots) == len(places)
    rings = [c for c in dots if c.get("fill") == "#fff"]
    assert len(rings) == sum(s.consumes for g in graph.groups for s in g.sites)
    assert main(["inspect", "--model", "mlp", "--svg", str(out)]) == 2
    assert "--svg draws the groups of --graph" in capsys.readouterr().err


def test_lanes_are_used_again_and_long_models_are_cut():
    shapes = {f"{i}.weight": (4, 4) for i in range(MOST_ROWS + 5)}
    groups = [
        Drawn(f"{i}.weight", "channels", 4, (Place(f"{i}.weight", 0, False), Place(f"{i + 1}.weight", 1, True)))
        for i in range(0, 20, 3)
    ]
    root = ET.fromstring(group_picture("<many> & more", shapes, groups))
    assert len({line.get("x1") for line in root.findall(f"{SVG}line")}) == 1
    assert any("5 more tensors" in "".join(t.itertext()) for t in root.findall(f"{SVG}text"))
    overlapping = [Drawn("a", "hidden", 4, tuple(Place(f"{i}.weight", 0, False) for i in range(9))), *groups]
    root = ET.fromstring(group_picture("x", shapes, overlapping))
    assert len({line.get("x1") for line in root.findall(f"{SVG}line")}) == 2


def test_a_folder_shows_its_groups(tmp_path, capsys):
    """The picture of what was pruned stands in the report; ``inspect --graph`` reads the small model."""
    x, model = torch.randn(2, 1, 8, 8), ow.build_model("mlp", hidden=[12, 8])
    result = ow.prune(model, magnitude(density=0.5, structure=ow.channels(example=x)))
    assert [(g["name"], g["units"], g["kept"]) for g in result.groups] == [("1.weight", 12, 6), ("3.weight", 8, 4)]
    assert result.report().startswith("magnitude: share of the units 50.00 % reached, 50.00 % asked\n")
    ow.save(ow.compact(model, result), result, tmp_path / "small")
    page = (tmp_path / "small" / "report.html").read_text()
    code = re.search(r'<img alt="Groups of magnitude"[^>]* src="data:image/svg\+xml;base64,([^"]+)">', page)
    root = ET.fromstring(base64.b64decode(code[1]))
    assert len(root.findall(f"{SVG}line")) == 2
    assert "share of the units: 50.00" in page
    assert ow.load(tmp_path / "small")[1].groups == result.groups
    assert main(["inspect", str(tmp_path / "small"), "--graph", "--svg", str(tmp_path / "g.svg")]) == 0
    out = capsys.readouterr().out
    assert "channels       6 units" in out
    assert "2 groups" in out
    assert str(tmp_path / "small") in (tmp_path / "g.svg").read_text()


def test_a_budget_is_reported_in_its_unit():
    x, model = torch.randn(2, 1, 8, 8), ow.build_model("mlp", hidden=[32, 32])
    recipe = magnitude(structure=ow.channels(example=x))
    assert re.match(
        r"magnitude: params (49|50)\.\d\d % reached, 50.00 % asked\n",
        ow.prune(copy.deepcopy(model), recipe, target={"params": 0.5}).report(),
    )
    assert re.match(
        r"magnitude: params (1,9[89]\d|2,0[012]\d) reached, 2,000 asked\n",
        ow.prune(model, recipe, target={"params": 2000}).report(),
    )
