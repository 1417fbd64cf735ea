"""``openwork inspect --graph --svg``: rows are tensors, lines are groups, dots say where units are made and read."""

import xml.etree.ElementTree as ET

import torch

import openwork as ow
from openwork.cli.main import main
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
