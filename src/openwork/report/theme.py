"""The frame of every page: one style sheet, light and dark, wide and narrow; no network, no script but a named one."""

from __future__ import annotations

from collections.abc import Sequence

from openwork.report.board import SCRIPT, STYLE, policy
from openwork.report.numbers import clean

CSS = """
:root{color-scheme:light dark;--bg:#f6f7f8;--card:#fff;--ink:#171b21;--soft:#5a6472;--line:#e2e6eb;--grid:#e9ecf0;
--track:#edf0f3;--shade:0 1px 2px rgba(20,30,50,.05),0 4px 16px rgba(20,30,50,.04);--accent:#1f5fc4;
--c0:#2667cf;--c1:#d2620e;--c2:#0b8a7b;--c3:#8650cf;--c4:#c23170;--c5:#797c12;--c6:#56616f;--c7:#9c4f2a;
--b0:#f0f2f5;--b1:#fdeed6;--b2:#e2edfd;--b3:#efe6fb}
@media (prefers-color-scheme:dark){:root{--bg:#101317;--card:#181c22;--ink:#e9ecf1;--soft:#9aa5b4;--line:#2a3039;
--grid:#262c35;--track:#262c35;--shade:none;--accent:#7fb0ff;--c0:#6ba4ff;--c1:#f9974f;--c2:#3ec7b3;--c3:#b794ff;
--c4:#ff7fae;--c5:#c9c750;--c6:#a3afbe;--c7:#dd9a74;--b0:#20252c;--b1:#3a2d17;--b2:#1a2c4a;--b3:#2e2345}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:70rem;margin:0 auto;padding:2.5rem 1.5rem 4rem}
header{margin-bottom:1.75rem}
.brand{display:flex;align-items:center;gap:.55rem;color:var(--soft);font-size:.85rem;letter-spacing:.02em}
.brand rect{fill:var(--accent)}.brand .off{opacity:.22}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.02em;margin:.6rem 0 .3rem;overflow-wrap:anywhere}
.sub{color:var(--soft);margin:0;overflow-wrap:anywhere}
.lede{max-width:46rem;margin:1rem 0 0}
section{margin-top:2.5rem}
h2{font-size:1.15rem;letter-spacing:-.01em;margin:0 0 .25rem}
.note{color:var(--soft);margin:0 0 1rem;font-size:.9rem;max-width:46rem}
.cards,.grid,.masks{display:grid;gap:1rem}
.cards{grid-template-columns:repeat(auto-fit,minmax(min(100%,14rem),1fr))}
.grid{grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));align-items:start}
.masks{grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr));align-items:start}
.card,.chart,.mask,.scroll,details{background:var(--card);border:1px solid var(--line);border-radius:12px;
box-shadow:var(--shade);margin:0;min-width:0}
.card{padding:1rem 1.15rem}
.card h3{margin:0;font-size:.82rem;font-weight:500;color:var(--soft)}
.card .big{font-size:1.75rem;font-weight:650;line-height:1.3;letter-spacing:-.02em;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
.card p{margin:.1rem 0 0;font-size:.85rem;color:var(--soft);font-variant-numeric:tabular-nums}
.chart,.mask{padding:1rem 1.15rem}
figcaption{font-weight:600;font-size:.92rem;margin-bottom:.7rem;overflow-wrap:anywhere}
svg.plot{display:block;overflow:visible;font-size:12px;font-variant-numeric:tabular-nums}
svg text{fill:var(--ink);font-family:inherit}svg .tick,svg .label,svg .more{fill:var(--soft);font-size:11.5px}
svg .name{font-size:13px}svg .value{font-size:13px;font-weight:600;text-anchor:end}svg .more{font-weight:400}
g.grid line,line.grid{stroke:var(--grid)}line.axis{stroke:var(--line)}
line.mark{stroke:var(--c1);stroke-width:1.5;stroke-dasharray:4 4}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round;vector-effect:non-scaling-stroke}
.whisker{fill:none;stroke-width:1.75;stroke-linecap:round}
.track{fill:var(--track)}.hit{fill:transparent}.edge{stroke:var(--line)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:.5rem 0 0;padding:0;font-size:.82rem;
color:var(--soft)}
.legend li{display:flex;align-items:center;gap:.4rem;overflow-wrap:anywhere}
.empty{color:var(--soft);margin:0}
.mask figcaption{margin-bottom:.1rem}.mask p{margin:0 0 .6rem;font-size:.82rem;color:var(--soft);
font-variant-numeric:tabular-nums}
.ink{background:var(--accent);border-radius:4px;overflow:hidden;border:1px solid var(--line)}
.ink img{display:block;width:100%;height:100%;image-rendering:pixelated;mix-blend-mode:screen}
.scroll{overflow:auto;max-height:44rem}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:.5rem .9rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td,tr:last-child th{border-bottom:0}
thead th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:500;font-size:.82rem;
box-shadow:inset 0 -1px var(--line);white-space:nowrap}
tbody th{font-weight:500;overflow-wrap:break-word;min-width:9rem}
.r{text-align:right;white-space:nowrap}.off-row{color:var(--soft)}.off-row th{font-weight:400}
td{overflow-wrap:break-word}
details{padding:.8rem 1.15rem}.scroll+details{margin-top:1rem}.grid+.note,.masks+.note{margin:.8rem 0 0}
summary{cursor:pointer;font-weight:600;font-size:.92rem}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
pre{margin:.7rem 0 0;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-x:auto}
footer{margin-top:3rem;color:var(--soft);font-size:.85rem}
@media (prefers-color-scheme:dark){.ink img{filter:invert(1);mix-blend-mode:multiply}}
@media (max-width:36rem){main{padding:1.5rem 1rem 3rem}h1{font-size:1.6rem}svg .more{display:none}
.card .big{font-size:1.5rem}th,td{padding:.45rem .7rem}}
@media print{body{background:#fff}.scroll{max-height:none}.card,.chart,.mask,.scroll,details{break-inside:avoid}}
"""
CSS += "".join(f".s{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i})}}" for i in range(8))
CSS += "".join(f".band{i}{{fill:var(--b{i})}}" for i in range(4))

NARROW = "\u00a0%"  # a percent sign stays with its number
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LOGO = "".join(
    f'<rect {"" if (x, y) in {(0, 0), (1, 1), (2, 0), (1, 2)} else "class=off "}x="{6 * x}" y="{6 * y}" width="5" '
    'height="5" rx="1.2"/>'
    for x in range(3)
    for y in range(3)
).replace("class=off", 'class="off"')


def html_page(
    title: str, heading: str, under: str, lede: str, sections: Sequence[str], foot: str, script: bool = False
) -> str:
    """A whole page. ``sections`` are HTML, everything else is text; ``script`` adds the one of ``board``, no other."""
    allowed = f"{_POLICY}; script-src {policy()}" if script else _POLICY
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{clean(title)}</title><style>{CSS}{STYLE if script else ''}</style></head>\n<body><main><header>"
        f'<div class="brand"><svg width="17" height="17" aria-hidden="true">{_LOGO}</svg>openwork</div>'
        f'<h1>{clean(heading)}</h1><p class="sub">{clean(under)}</p><p class="lede">{clean(lede)}</p></header>\n'
        + "\n".join(s for s in sections if s)
        + f"\n<footer>{clean(foot)}</footer></main>{f'<script>{SCRIPT}</script>' if script else ''}</body></html>\n"
    )


def section(title: str, note: str, body: str) -> str:
    """A part of the page: heading and note are text, the body is HTML. Without a body there is no section."""
    if not body:
        return ""
    under = f'<p class="note">{clean(note)}</p>' if note else ""
    return f"<section><h2>{clean(title)}</h2>{under}{body}</section>"


def grid(*figures: str) -> str:
    """Figures side by side where there is room."""
    inside = "".join(figures)
    return f'<div class="grid">{inside}</div>' if inside else ""


def card(title: str, big: str, *lines: str) -> str:
    """A headline number with what it means."""
    under = "".join(f"<p>{clean(line.replace(' %', NARROW))}</p>" for line in lines if line)
    return f'<div class="card"><h3>{clean(title)}</h3><div class="big">{clean(big)}</div>{under}</div>'


def html_table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    quiet: Sequence[int] = (),
) -> str:
    """A table that scrolls in its own frame; ``right`` columns hold numbers, ``quiet`` rows are set back."""

    def cell(tag: str, i: int, value: str, scope: str = "") -> str:
        kind = ' class="r"' if i in right else ""
        return f"<{tag}{scope}{kind}>{clean(value)}</{tag}>"

    head = "".join(cell("th", i, h, ' scope="col"') for i, h in enumerate(heads))
    body = "".join(
        ('<tr class="off-row">' if n in hushed else "<tr>")
        + "".join(cell("td" if i else "th", i, v, "" if i else ' scope="row"') for i, v in enumerate(row))
        + "</tr>"
        for hushed in [set(quiet)]
        for n, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{clean(caption)}"><table>'
        f"<caption>{clean(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
