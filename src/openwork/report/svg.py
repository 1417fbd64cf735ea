"""A small plotting kit: data to SVG text, with colours from CSS variables so that dark mode works.

Horizontal positions are percentages and vertical ones pixels, so a chart fills any width while its text
keeps its size. Points that are not finite (or not positive on a log axis) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from openwork.errors import OpenworkError
from openwork.report.numbers import clean, finite, number, percent, shorten
from openwork.report.ticks import log_ticks, nice_ticks, tick_label

LEFT, WIDE = 13.0, 84.0  # percent of the width: start and length of the plotting area
TOP, TALL, BETWEEN, FOOT = 26, 164, 42, 40  # pixels
COLOURS, MARKERS = 8, 4
MOST_POINTS, MOST_HITS = 400, 60

Number = float | int | None


@dataclass(frozen=True)
class Series:
    """Points of one name; ``error`` holds half the length of each error bar."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    error: Sequence[Number] = ()

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or (self.error and len(self.error) != len(self.y)):
            raise OpenworkError(
                f"series {self.name!r} needs as many x as y and errors, got {len(self.x)}, {len(self.y)} and "
                f"{len(self.error)}"
            )


@dataclass(frozen=True)
class Axis:
    """Label, scale and unit of an axis; with ``%`` the data are shares."""

    label: str
    scale: Literal["linear", "log"] = "linear"
    unit: Literal["", "%"] = ""

    def __post_init__(self) -> None:
        if self.scale not in ("linear", "log") or self.unit not in ("", "%"):
            raise OpenworkError(
                f"axis {self.label!r}: scale must be linear or log and unit '' or '%', got {self.scale!r} and "
                f"{self.unit!r}"
            )


@dataclass(frozen=True)
class Panel:
    """Series that share one vertical axis."""

    series: Sequence[Series]
    y: Axis


@dataclass(frozen=True)
class Band:
    """A stretch of the horizontal axis with a name and a background, a phase for example."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Bar:
    """One bar: label, length as a share of the full width, what is written at its end, and a longer note."""

    label: str
    share: Number
    value: str
    note: str = ""
    colour: int = 0


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    error: float


class _Scale:
    """Data to 0..1 along an axis."""

    def __init__(self, axis: Axis, values: Sequence[float], cover: bool, pad: float = 0.0):
        self.axis, self.log = axis, axis.scale == "log"
        low, high = (min(values), max(values)) if values else (0.1, 1.0)
        ticks = log_ticks(low, high) if self.log else nice_ticks(low, high)
        if cover or low == high:
            low, high = ticks[0], ticks[-1]
        self.low, self.high = self._warp(low), self._warp(high)
        pad *= self.high - self.low
        self.low, self.high = self.low - pad, self.high + pad
        inside = [t for t in ticks if -1e-9 <= self.at(t) <= 1 + 1e-9]
        self.ticks = inside if len(inside) > 1 else [float(f"{v:.3g}") for v in (low, high)]

    def _warp(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> float:
        return (self._warp(value) - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        step = tick if self.log else self.ticks[1] - self.ticks[0]
        return tick_label(tick, step, self.axis.unit)

    def told(self, value: float) -> str:
        return percent(value) if self.axis.unit == "%" else number(value)


def line_chart(title: str, x: Axis, *panels: Panel, bands: Sequence[Band] = ()) -> str:
    """One or more panels of lines above a shared horizontal axis, as a ``<figure>``."""
    return _chart(title, x, panels, bands, lines=True)


def scatter_chart(title: str, x: Axis, panel: Panel, mark: Number = None, joined: bool | str = False) -> str:
    """Markers with error bars; series are moved apart a little. ``mark`` is a dashed line at a height.

    ``joined`` draws a faint line through the markers of each series, or of the one that it names.
    """
    return _chart(title, x, [panel], (), lines=False, mark=mark, joined=joined)


def bar_chart(title: str, bars: Sequence[Bar]) -> str:
    """Horizontal bars, each under its label, as a ``<figure>``."""
    if not bars:
        return _figure(title, _empty(), "")
    parts, high = [], 40
    for i, bar in enumerate(bars):
        share, y = min(max(finite(bar.share) or 0.0, 0.0), 1.0), i * high
        told = f"{bar.label}: {bar.value}" + (f", {bar.note}" if bar.note else "")
        note = f'<tspan class="more">{clean(bar.note)} · </tspan>' if bar.note else ""
        parts.append(
            f"<g><title>{clean(told)}</title>"
            f'<text class="name" x="0" y="{y + 13}">{clean(shorten(bar.label, 30))}</text>'
            f'<text class="value" x="100%" y="{y + 13}">{note}{clean(bar.value)}</text>'
            f'<rect class="track" x="0" y="{y + 20}" width="100%" height="8" rx="4"/>'
            f'<rect class="f{bar.colour % COLOURS}" x="0" y="{y + 20}" width="{100 * share:.2f}%" height="8" rx="4"/>'
            "</g>"
        )
    return _figure(title, _svg(title, len(bars) * high - 8, "".join(parts)), "")


def interval_chart(title: str, x: Axis, rows: Sequence[tuple[str, Number, Number]], mark: Number = None) -> str:
    """One row a name: a dot with its error bar along a horizontal axis; ``mark`` is a dashed reference line."""
    told = [(name, value, abs(finite(e) or 0.0)) for name, v, e in rows if (value := finite(v)) is not None]
    reach = [e for _, v, e in told for e in (v - e, v + e)] + [m for m in [finite(mark)] if m is not None]
    if not told:
        return _figure(title, _empty(), "")
    scale, high = _Scale(x, reach, cover=True), 38
    foot = len(told) * high + 4
    parts = [
        f'<line class="grid" x1="{_x(scale, t)}" x2="{_x(scale, t)}" y1="4" y2="{foot}"/>'
        f'<text class="tick" x="{_x(scale, t)}" y="{foot + 16}" text-anchor="middle">'
        f"{scale.label(t)}</text>"
        for t in scale.ticks
    ]
    if finite(mark) is not None:
        at = _x(scale, float(mark or 0))
        parts.append(f'<line class="mark" x1="{at}" x2="{at}" y1="4" y2="{foot}"/>')
    for i, (name, v, e) in enumerate(told):
        y = i * high + 16
        spread = f" ± {scale.told(e)}" if e else ""
        parts.append(
            f"<g><title>{clean(f'{name}: {scale.told(v)}{spread}')}</title>"
            f'<text class="name" x="0" y="{y}">{clean(shorten(name, 40))}</text>'
            f'<line class="grid" x1="0" x2="100%" y1="{y + 12}" y2="{y + 12}"/>'
            f'<line class="whisker s0" x1="{_x(scale, v - e)}" x2="{_x(scale, v + e)}" y1="{y + 12}" y2="{y + 12}"/>'
            f'<circle class="f0" cx="{_x(scale, v)}" cy="{y + 12}" r="5"/></g>'
        )
    parts.append(f'<text class="label" x="100%" y="{foot + 34}" text-anchor="end">{clean(x.label)}</text>')
    return _figure(title, _svg(title, foot + 40, "".join(parts)), "")


def thin(points: Sequence[_Point], most: int = MOST_POINTS) -> list[_Point]:
    """At most about ``most`` points; of every stretch the lowest and the highest stay, so peaks are not lost."""
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // most)
    kept = {0, len(points) - 1}
    for begin in range(0, len(points), size):
        stretch = range(begin, min(begin + size, len(points)))
        kept |= {min(stretch, key=lambda i: points[i].y), max(stretch, key=lambda i: points[i].y)}
    return [points[i] for i in sorted(kept)]


def _chart(
    title: str,
    x: Axis,
    panels: Sequence[Panel],
    bands: Sequence[Band],
    lines: bool,
    mark: Number = None,
    joined: bool | str = False,
) -> str:
    drawn = [[(s.name, _points(s, x, p.y)) for s in p.series] for p in panels]
    every = [q for panel in drawn for _, points in panel for q in points]
    if not every:
        return _figure(title, _empty(), "")
    across = _Scale(x, [q.x for q in every], cover=False, pad=0.0 if lines else 0.12)
    bands = [b for b in bands if across.axis.scale == "linear" or b.begin > 0]
    parts, top, colour = [], TOP, 0
    for panel, named in zip(panels, drawn, strict=True):
        reach = [v for _, points in named for q in points for v in _reach(q, panel.y)]
        level = finite(mark)
        up = _Scale(panel.y, reach + [m for m in [level] if m is not None], cover=True)
        parts += [_band(b, bands, across, top) for b in bands]
        parts.append(_frame(panel.y, up, top))
        if level is not None:
            at = f"{_y(up, level, top):.1f}"
            parts.append(f'<line class="mark" x1="{LEFT}%" x2="{LEFT + WIDE}%" y1="{at}" y2="{at}"/>')
        for i, (name, points) in enumerate(named):
            draw = _line if lines else _markers
            if joined in (True, name):
                parts.append(_join(points, colour + i, across, up, top, (i, len(named))))
            parts.append(draw(name, points, colour + i, across, up, top, (i, len(named))))
        colour, top = colour + len(named), top + TALL + BETWEEN
    bottom = top - BETWEEN
    parts.append(_ruler(x, across, bottom))
    names = [s.name for p in panels for s in p.series]
    body = _svg(title, bottom + FOOT, "".join(parts))
    return _figure(title, body, _legend(names, lines) + _band_legend(bands))


def _points(series: Series, x: Axis, y: Axis) -> list[_Point]:
    points = []
    for i, (a, b) in enumerate(zip(series.x, series.y, strict=True)):
        a, b = finite(a), finite(b)
        if a is None or b is None or (x.scale == "log" and a <= 0) or (y.scale == "log" and b <= 0):
            continue
        points.append(_Point(a, b, abs(finite(series.error[i]) or 0.0) if series.error else 0.0))
    return points


def _reach(q: _Point, y: Axis) -> list[float]:
    return [v for v in (q.y - q.error, q.y, q.y + q.error) if y.scale == "linear" or v > 0]


def _line(name: str, points: list[_Point], colour: int, x: _Scale, y: _Scale, top: int, place: tuple[int, int]) -> str:
    """A polyline in a stretched coordinate system, and unstretched spots that tell their values."""
    colour %= COLOURS
    some = thin(points)
    drawn = _polyline(some, colour, x, y, top)
    every = -(-len(some) // MOST_HITS) or 1
    radius = 3 if len(points) <= 25 else 0
    for q in some[::every]:
        told = f"{name}: {y.told(q.y)} at {x.axis.label} {x.told(q.x)}"
        at = f'cx="{_x(x, q.x)}" cy="{_y(y, q.y, top):.1f}"'
        dot = f'<circle class="f{colour}" {at} r="{radius}"/>' if radius else ""
        drawn += f'<g>{dot}<circle class="hit" {at} r="7"><title>{clean(told)}</title></circle></g>'
    return drawn


def _polyline(points: Sequence[_Point], colour: int, x: _Scale, y: _Scale, top: int) -> str:
    path = " ".join(f"{1000 * x.at(q.x):.1f},{TALL * (1 - y.at(q.y)):.1f}" for q in points)
    return (
        f'<svg class="plot" x="{LEFT}%" y="{top}" width="{WIDE}%" height="{TALL}" viewBox="0 0 1000 {TALL}" '
        f'preserveAspectRatio="none"><polyline class="line s{colour}" points="{path}"/></svg>'
    )


def _shift(place: tuple[int, int]) -> float:
    rank, of = place
    return (rank - (of - 1) / 2) * min(6, 60 / of)


def _join(points: Sequence[_Point], colour: int, x: _Scale, y: _Scale, top: int, place: tuple[int, int]) -> str:
    line = _polyline(sorted(points, key=lambda q: q.x), colour % COLOURS, x, y, top)
    return f'<g opacity=".45" transform="translate({_shift(place):.1f} 0)">{line}</g>'


def _markers(
    name: str, points: list[_Point], index: int, x: _Scale, y: _Scale, top: int, place: tuple[int, int]
) -> str:
    shift = _shift(place)
    drawn = ""
    for q in points:
        high, mid, low = (_y(y, max(v, 10**y.low) if y.log else v, top) for v in (q.y + q.error, q.y, q.y - q.error))
        spread = f" ± {y.told(q.error)}" if q.error else ""
        told = f"{name}: {y.told(q.y)}{spread} at {x.axis.label} {x.told(q.x)}"
        bars = (
            f'<path class="whisker s{index % COLOURS}" d="M{shift:.1f} {high:.1f}V{low:.1f}'
            f'M{shift - 4:.1f} {high:.1f}h8M{shift - 4:.1f} {low:.1f}h8"/>'
            if q.error
            else ""
        )
        drawn += (
            f'<svg x="{_x(x, q.x)}" y="0" class="plot"><title>{clean(told)}</title>{bars}'
            f"{_marker(index, shift, mid)}</svg>"
        )
    return drawn


def _marker(index: int, x: float, y: float) -> str:
    """Circle, square, triangle or diamond, so that colour is not the only sign; past eight, other pairs of both."""
    paint, kind = f'class="f{index % COLOURS}"', (index + index // COLOURS) % MARKERS
    if kind == 0:
        return f'<circle {paint} cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    steps = ("m-4.5 -4.5h9v9h-9z", "m0 -5.5l5.5 10h-11z", "m0 -6l6 6l-6 6l-6 -6z")[kind - 1]
    return f'<path {paint} d="M{x:.1f} {y:.1f}{steps}"/>'


def _frame(axis: Axis, y: _Scale, top: int) -> str:
    rows = "".join(
        f'<line class="grid" x1="{LEFT}%" x2="{LEFT + WIDE}%" y1="{_y(y, t, top):.1f}" y2="{_y(y, t, top):.1f}"/>'
        f'<text class="tick" x="{LEFT - 1.5}%" y="{_y(y, t, top) + 4:.1f}" text-anchor="end">{y.label(t)}</text>'
        for t in y.ticks
    )
    log = ", log scale" if y.log else ""
    return f'{rows}<text class="label" x="0" y="{top - 12}">{clean(axis.label + log)}</text>'


def _ruler(axis: Axis, x: _Scale, bottom: int) -> str:
    marks = "".join(
        f'<line class="axis" x1="{_x(x, t)}" x2="{_x(x, t)}" y1="{bottom}" y2="{bottom + 4}"/>'
        f'<text class="tick" x="{_x(x, t)}" y="{bottom + 17}" text-anchor="middle">{x.label(t)}</text>'
        for t in x.ticks
    )
    log = ", log scale" if x.log else ""
    return (
        f'<line class="axis" x1="{LEFT}%" x2="{LEFT + WIDE}%" y1="{bottom}" y2="{bottom}"/>{marks}'
        f'<text class="label" x="{LEFT + WIDE}%" y="{bottom + 35}" text-anchor="end">{clean(axis.label + log)}</text>'
    )


def _band(band: Band, bands: Sequence[Band], x: _Scale, top: int) -> str:
    begin, end = (min(max(x.at(v), 0.0), 1.0) for v in (band.begin, band.end))
    kind = _kinds(bands).index(band.name) % 4
    return (
        f'<rect class="band{kind}" x="{LEFT + WIDE * begin:.2f}%" y="{top}" width="{WIDE * (end - begin):.2f}%" '
        f'height="{TALL}"><title>{clean(band.name)}</title></rect>'
    )


def _kinds(bands: Sequence[Band]) -> list[str]:
    return list(dict.fromkeys(b.name for b in bands))


def _band_legend(bands: Sequence[Band]) -> str:
    keys = "".join(
        f'<li><svg width="14" height="12" aria-hidden="true">'
        f'<rect class="band{i % 4} edge" width="14" height="12" rx="3"/></svg>'
        f"{clean(n)} phase</li>"
        for i, n in enumerate(_kinds(bands))
    )
    return f'<ul class="legend">{keys}</ul>' if keys else ""


def _legend(names: Sequence[str], lines: bool) -> str:
    if len(names) < 2:
        return ""
    key = '<line class="line s{0}" x1="0" x2="16" y1="6" y2="6"/>'
    keys = "".join(
        f'<li><svg width="16" height="12" aria-hidden="true">'
        f"{key.format(i % COLOURS) if lines else _marker(i, 8, 6)}</svg>"
        f"{clean(n)}</li>"
        for i, n in enumerate(names)
    )
    return f'<ul class="legend">{keys}</ul>'


def _x(scale: _Scale, value: float) -> str:
    return f"{LEFT + WIDE * scale.at(value):.2f}%"


def _y(scale: _Scale, value: float, top: int) -> float:
    return top + TALL * (1 - scale.at(value))


def _empty() -> str:
    return '<p class="empty">Nothing to draw: no finite values.</p>'


def _svg(title: str, height: float, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" aria-label="{clean(title)}" width="100%" '
        f'height="{height:.0f}">{body}</svg>'
    )


def _figure(title: str, body: str, legend: str) -> str:
    return f'<figure class="chart"><figcaption>{clean(title)}</figcaption>{body}{legend}</figure>'
