"""Ticks, mask pictures and charts: known answers, foreign readers, broken input."""

import io
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.errors import OpenworkError
from openwork.report.mask_picture import kept_shares, mask_data_uri, mask_matrix, mask_png
from openwork.report.svg import (
    Axis,
    Band,
    Bar,
    Panel,
    Series,
    _Point,
    bar_chart,
    interval_chart,
    line_chart,
    scatter_chart,
    thin,
)
from openwork.report.ticks import log_ticks, nice_step, nice_ticks, tick_label


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 97, [0, 20, 40, 60, 80, 100]),
        (13, 97, [0, 20, 40, 60, 80, 100]),
        (-3, 7, [-4, -2, 0, 2, 4, 6, 8]),
        (0.9, 0.93, [0.9, 0.91, 0.92, 0.93]),
        (0, 12, [0, 2.5, 5, 7.5, 10, 12.5]),
        (5, 5, [4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_nice_ticks(low, high, ticks):
    assert nice_ticks(low, high) == ticks


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_and_are_few(low, span):
    ticks = nice_ticks(low, low + span)
    assert ticks[0] <= low + 1e-6 * span
    assert ticks[-1] >= low + span - 1e-6 * span
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.02, 1, [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]),
        (0.03, 0.04, [0.02, 0.05]),
        (1e-5, 0.9, [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        (1, 1, [1, 2]),
    ],
)
def test_log_ticks(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks, rel=1e-12)


def test_log_ticks_of_many_decades_are_few_and_cover():
    ticks = log_ticks(1e-15, 1e9)
    assert len(ticks) <= 8
    assert ticks[0] <= 1e-15
    assert ticks[-1] >= 1e9


@pytest.mark.parametrize(
    ("value", "step", "unit", "text"),
    [(0.95, 0.025, "%", "95.0%"), (0.975, 0.025, "%", "97.5%"), (1500, 500, "", "1.5k"), (2e6, 1e6, "", "2M"),
     (0, 0.2, "", "0.0"), (0.25, 0.05, "", "0.25"), (1e-6, 1e-6, "", "1e-06")],
)  # fmt: skip
def test_tick_labels(value, step, unit, text):
    assert tick_label(value, step, unit) == text


def test_ticks_refuse():
    with pytest.raises(OpenworkError, match=r"nice_step needs a finite span above 0 .* got 0 and 5"):
        nice_step(0)
    with pytest.raises(OpenworkError, match=r"nice_ticks needs finite low <= high, got 2 and 1"):
        nice_ticks(2, 1)
    with pytest.raises(OpenworkError, match=r"nice_ticks needs finite low <= high, got nan and 1"):
        nice_ticks(math.nan, 1)
    with pytest.raises(OpenworkError, match=r"log_ticks needs finite 0 < low <= high, got 0 and 1"):
        log_ticks(0, 1)


def decoded(mask, **size):
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(mask_png(mask, **size)))
    image.load()
    return torch.tensor(list(image.convert("L").tobytes())).view(image.height, image.width)


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (5, 9), (7, 17), (4, 3, 2), (6, 5, 3, 3), (2, 3, 2, 2, 2), (11,)])
def test_a_small_mask_is_one_pixel_an_entry(shape):
    mask = torch.rand(shape) < 0.4
    if mask.dim() == 1:
        rows = mask[None]
    else:
        rows = torch.stack([filter_.flatten(1).T.flatten() if filter_.dim() > 1 else filter_ for filter_ in mask])
    assert torch.equal(decoded(mask), torch.where(rows, 0, 255))


@pytest.mark.parametrize(("shape", "rows", "columns"), [((10, 7), 4, 3), ((4, 100), 256, 9), ((5, 5), 1, 1)])
def test_a_large_mask_is_averaged(shape, rows, columns):
    mask = torch.rand(shape) < 0.3
    high, wide = math.ceil(shape[0] / rows), math.ceil(shape[1] / columns)
    blocks = [[b.float().mean().item() for b in strip.split(wide, 1)] for strip in mask.split(high, 0)]
    expected = torch.tensor(blocks)
    torch.testing.assert_close(kept_shares(mask, rows, columns), expected, rtol=0, atol=1e-6)
    shade = ((1 - expected.sqrt()) * 15).round().int() * 17
    assert torch.equal(decoded(mask, rows=rows, columns=columns).int(), shade)


def test_pictures_stay_small():
    image = decoded(torch.rand(1000, 5000) < 0.05)
    assert image.shape[0] <= 256
    assert image.shape[1] <= 384
    assert mask_data_uri(torch.ones(2, 2, dtype=torch.bool)).startswith("data:image/png;base64,iVBOR")


def test_pictures_refuse():
    with pytest.raises(OpenworkError, match=r"needs a bool tensor, got torch\.float32"):
        mask_matrix(torch.ones(2, 2))
    with pytest.raises(OpenworkError, match=r"at least one entry, got shape \(0, 3\)"):
        mask_png(torch.ones(0, 3, dtype=torch.bool))
    with pytest.raises(OpenworkError, match="at least one pixel, got rows=0 and columns=5"):
        mask_png(torch.ones(2, 2, dtype=torch.bool), rows=0, columns=5)


class Shapes(HTMLParser):
    """The attributes of every element by tag."""

    def __init__(self, text):
        super().__init__()
        self.found = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.setdefault(tag, []).append(dict(attrs))

    def __getitem__(self, tag):
        return self.found.get(tag, [])


def points(chart):
    lines = [p["points"].split() for p in Shapes(chart)["polyline"]]
    return [[tuple(float(v) for v in p.split(",")) for p in line] for line in lines]


def test_a_line_goes_where_the_data_go():
    chart = line_chart("t", Axis("x"), Panel([Series("a", [0, 5, 10], [0, 1, 0.5])], Axis("y")))
    assert points(chart) == [[(0, 164), (500, 0), (1000, 82)]]


def test_a_log_axis_is_logarithmic():
    chart = line_chart("t", Axis("x", "log"), Panel([Series("a", [1, 10, 100], [1e-2, 1e-1, 1])], Axis("y", "log")))
    assert points(chart) == [[(0, 164), (500, 82), (1000, 0)]]


def test_points_that_are_not_finite_are_left_out():
    bad = [math.nan, math.inf, None, 1.0, 2.0]
    assert [len(p) for p in points(line_chart("t", Axis("x"), Panel([Series("a", range(5), bad)], Axis("y"))))] == [2]
    log = Series("a", [1, 2, 3, 4], [0.0, -1.0, 1.0, 10.0])
    assert [len(p) for p in points(line_chart("t", Axis("x"), Panel([log], Axis("y", "log"))))] == [2]
    assert "nan" not in line_chart("t", Axis("x"), Panel([Series("a", range(5), bad)], Axis("y"))).lower()


@pytest.mark.parametrize(
    "chart",
    [
        line_chart("t", Axis("x"), Panel([], Axis("y"))),
        line_chart("t", Axis("x")),
        line_chart("t", Axis("x"), Panel([Series("a", [1], [math.nan])], Axis("y"))),
        scatter_chart("t", Axis("x"), Panel([Series("a", [], [])], Axis("y"))),
        bar_chart("t", []),
        interval_chart("t", Axis("x"), [("a", None, 1.0)]),
    ],
)
def test_nothing_to_draw_is_said(chart):
    assert "Nothing to draw" in chart
    assert "<svg" not in chart


def test_an_empty_series_beside_a_full_one_draws_the_full_one():
    chart = line_chart("t", Axis("x"), Panel([Series("a", [1, 2], [3, 4]), Series("b", [], [])], Axis("y")))
    assert [len(p) for p in points(chart)] == [2, 0]


def test_panels_bands_and_legends():
    series = Series("left", [0, 10], [1, 2]), Series("right", [0, 10], [3, 4])
    bands = [Band("dense", 0, 4), Band("sparse", 4, 10), Band("dense", 10, 10)]
    chart = line_chart("t", Axis("x"), *(Panel([s], Axis(s.name)) for s in series), bands=bands)
    rects = [(r["class"], r["width"]) for r in Shapes(chart)["rect"] if r["class"] in ("band0", "band1")]
    assert rects[:3] == [("band0", "33.60%"), ("band1", "50.40%"), ("band0", "0.00%")]
    assert chart.count("dense phase") == 1
    assert len(Shapes(chart)["polyline"]) == 2
    assert "<li>" not in line_chart("t", Axis("x"), Panel(series[:1], Axis("y")))


def test_error_bars_have_their_length():
    chart = scatter_chart("t", Axis("x"), Panel([Series("a", [1, 2], [0.0, 1.0], [0.5, None])], Axis("y")), mark=0.5)
    (path,) = [p["d"] for p in Shapes(chart)["path"] if "whisker" in p["class"]]
    high, low = (float(v) for v in re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)M", path).groups())
    assert low - high == pytest.approx(164 / 1.5, abs=0.2)  # the axis runs from -0.5 to 1
    assert "a: 0 ± 0.5 at x 1" in chart
    assert [m["class"] for m in Shapes(chart)["line"] if m["class"] == "mark"] == ["mark"]


def test_bars_and_intervals():
    chart = bar_chart("t", [Bar("a", 0.25, "25 %"), Bar("b", 7.0, "much"), Bar("c", math.nan, "-")])
    assert [r["width"] for r in Shapes(chart)["rect"] if r["class"] == "f0"] == ["25.00%", "100.00%", "0.00%"]
    rows = interval_chart("t", Axis("x"), [("a", 0.0, 0.0), ("b", 1.0, None), ("gone", None, 1.0)], mark=0.5)
    assert [c["cx"] for c in Shapes(rows)["circle"]] == ["13.00%", "97.00%"]
    assert "gone" not in rows


def test_thinning_keeps_ends_and_peaks():
    line = [_Point(i, 100.0 if i == 777 else math.sin(i), 0) for i in range(5000)]
    few = thin(line)
    assert len(few) <= 402
    assert few[0] is line[0]
    assert few[-1] is line[-1]
    assert line[777] in few
    assert thin(line[:10]) == line[:10]


def test_charts_refuse():
    with pytest.raises(OpenworkError, match=r"series 'a' needs as many x as y and errors, got 2, 1 and 0"):
        Series("a", [1, 2], [1])
    with pytest.raises(OpenworkError, match=r"series 'a' needs .* got 1, 1 and 2"):
        Series("a", [1], [1], [1, 2])
    with pytest.raises(OpenworkError, match=r"axis 'a': scale must be linear or log .* got 'cubic' and ''"):
        Axis("a", "cubic")
    with pytest.raises(OpenworkError, match=r"axis 'a': scale .* got 'linear' and 'kg'"):
        Axis("a", unit="kg")
