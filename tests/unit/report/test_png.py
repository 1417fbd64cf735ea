"""Charts as PNG: their colours, their size, and a clear word where the extra is missing."""

import io
import re
import sys
from pathlib import Path

import pytest
from tests.unit.report.test_suite_pages import results

from openwork.cli import main
from openwork.errors import RecipeError
from openwork.report.png import LIGHT, plain_svg, png
from openwork.report.suite_files import suite_files


def chart():
    return next(v for k, v in suite_files(results()).items() if k.endswith(".svg"))


def test_a_plain_picture_needs_no_variables():
    plain = plain_svg(chart())
    assert "var(" in chart()
    assert "var(" not in plain
    assert "@media" not in plain
    assert LIGHT["card"] == "#fff"
    assert f".f0{{fill:{LIGHT['c0']}}}" in plain
    assert plain_svg("<svg/>") == "<svg/>"


def test_a_picture_of_points_on_white():
    pytest.importorskip("resvg_py")
    image = pytest.importorskip("PIL.Image")
    wide, tall = map(int, re.search(r'width="(\d+)" height="(\d+)"', chart()).groups())
    with image.open(io.BytesIO(png(chart()))) as found:
        assert found.size == (2 * wide, 2 * tall)
        colours = {c: n for n, c in found.convert("RGB").getcolors(1 << 24)}
    assert max(colours, key=colours.get) == (255, 255, 255)
    blue = tuple(bytes.fromhex(LIGHT["c0"][1:]))
    assert colours[blue] > 100


def test_a_picture_has_its_words():
    """Programs that know no generic family drop all text of it without a word."""
    pytest.importorskip("resvg_py")
    image = pytest.importorskip("PIL.Image")
    if not list(Path("/usr/share/fonts").rglob("DejaVuSans.ttf")):
        pytest.skip("needs a font")
    with image.open(io.BytesIO(png(chart(), 1))) as found:
        title = found.convert("L").crop((0, 0, found.width, 40))
    assert sum(n for n, shade in title.getcolors() if shade < 128) > 100


def test_without_the_extra_nothing_is_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(RecipeError, match=r"PNG files need resvg_py; install it: pip install 'openwork\[png\]'"):
        png(chart())
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "settings: {a: {model: mlp, data: digits}}\nmethods: {magnitude: {}}\ndensities: [0.5]\nseeds: [0]\n"
    )
    assert main(["compare", str(suite), "--out", str(tmp_path / "o"), "--png"]) == 2
    assert "PNG files need resvg_py" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
