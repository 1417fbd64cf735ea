"""A table that sorts and filters: plain HTML with one small script, which the page names by its hash."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from openwork.report.numbers import clean

SHOWN = 50  # rows of a long table that are laid out before somebody asks for more
SCRIPT = """
for (const board of document.querySelectorAll("[data-board]")) {
  const body = board.querySelector("tbody"), heads = [...board.querySelectorAll("thead")[0].rows[0].cells];
  const find = board.querySelector("input[type=search]"), choices = [...board.querySelectorAll("select")];
  const told = board.querySelector("[data-told]"), rest = board.querySelector("noscript");
  const all = board.querySelector("[data-all]"), total = +board.dataset.board;
  let rows = [], text = [], sorted = [], limit = rest ? body.rows.length : Infinity;
  const load = () => {
    if (rows.length) return;
    if (rest) {
      const made = document.createElement("template");
      made.innerHTML = rest.textContent;
      body.append(...made.content.querySelectorAll("tbody > tr"));
      rest.remove();
    }
    rows = sorted = [...body.rows];
    text = new Map(rows.map(r => [r, (r.cells[0].textContent + " " + (r.dataset.words || "")).toLowerCase()]));
  };
  const value = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
  const order = (a, b, i, sign) => {
    const x = value(a, i), y = value(b, i), p = parseFloat(x), q = parseFloat(y);
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (isNaN(p) || isNaN(q) ? x.localeCompare(y) : p - q);
  };
  const count = seen => {
    const [some, whole] = [seen, total].map(n => n.toLocaleString("en"));
    const first = seen > limit ? `the first ${limit} of ` : "", rest = seen < total ? ` of ${whole}` : "";
    told.textContent = `${first}${some}${rest} rows`;
    all.parentNode.hidden = seen <= limit;
    all.textContent = `Show all ${some} rows`;
  };
  const draw = () => {
    load();
    const words = find.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let seen = 0;
    for (const row of sorted) {
      const fits = words.every(w => text.get(row).includes(w)) &&
        choices.every(c => !c.value || row.cells[+c.dataset.column].textContent === c.value);
      seen += fits;
      row.hidden = !fits || seen > limit;
    }
    count(seen);
  };
  const whole = () => {
    limit = Infinity;
    draw();
  };
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") !== "ascending" : i === 0;
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    load();
    sorted = [...rows].sort((a, b) => order(a, b, i, up ? 1 : -1));
    body.append(...sorted);
    draw();
  }));
  find.addEventListener("input", draw);
  choices.forEach(c => c.addEventListener("change", draw));
  all.addEventListener("click", whole);
  addEventListener("beforeprint", whole);
  board.querySelector("[data-tools]").hidden = false;
  count(total);
}
"""
"""Sorts by a column when its heading is pressed and hides the rows that do not hold every word that is typed.

The rows after the first ones stand in a ``noscript`` element: text for a browser with scripts until they are wanted.
"""

STYLE = """
.tools{display:flex;flex-wrap:wrap;gap:.6rem;align-items:center;margin:0 0 .8rem;font-size:.85rem;color:var(--soft)}
.tools[hidden]{display:none}
.tools input,.tools select{font:inherit;color:var(--ink);background:var(--card);border:1px solid var(--line);
border-radius:8px;padding:.4rem .6rem;max-width:100%}
[data-board] td{white-space:nowrap}[data-board] tbody th{min-width:12rem}
[data-board] thead button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer}
th[aria-sort=ascending] button::after{content:" \\2191"}th[aria-sort=descending] button::after{content:" \\2193"}
details.in{padding:0;border:0;background:none;box-shadow:none}details.in summary{font:inherit}
details.in ul{margin:.4rem 0;padding-left:1.1rem;font-weight:400;font-size:.82rem;color:var(--soft)}
.heat path{stroke:var(--c0);stroke-width:6}.heat .off{stroke:var(--track);stroke-width:32;stroke-dasharray:6 2}
.more{margin:.8rem 0 0}.more[hidden]{display:none}.more button{font:inherit;font-size:.9rem;color:var(--accent);
cursor:pointer;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.4rem .8rem}
section{content-visibility:auto;contain-intrinsic-size:auto 40rem;padding:1px 3px 1rem;margin-inline:-3px}
a{color:var(--accent)}
"""


def policy() -> str:
    """What a page says about scripts so that this one runs and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"


@dataclass(frozen=True)
class Cell:
    """What a cell says, the number it is sorted by (None: its text), and HTML that opens below it."""

    text: str
    value: float | None = None
    more: str = ""


@dataclass(frozen=True)
class Row:
    """The cells of a row; ``words`` are found by the filter without being shown, ``quiet`` rows are set back."""

    cells: Sequence[Cell]
    words: str = ""
    quiet: bool = False


def board(caption: str, heads: Sequence[str], rows: Sequence[Row], choose: Sequence[int] = ()) -> str:
    """A sortable table in its own frame, below a field that filters.

    Args:
        caption: for screen readers.
        heads: one for each column; the first column is the name of the row.
        rows: as many cells each as there are heads.
        choose: columns that get a list of their values to choose one from.
    """
    right = [i for i in range(1, len(heads)) if any(r.cells[i].value is not None for r in rows)]
    head = "".join(
        f'<th scope="col"{_right(i in right)}><button type="button">{clean(h)}</button></th>'
        for i, h in enumerate(heads)
    )
    made = [_row(r, right) for r in rows]
    plain = head.replace('<button type="button">', "").replace("</button>", "")
    rest = "" if len(made) <= SHOWN else f"<noscript>{_table(caption, plain, made[SHOWN:])}</noscript>"
    lists = "".join(_list(heads[i], i, dict.fromkeys(r.cells[i].text for r in rows)) for i in choose)
    tools = (
        f'<div class="tools" data-tools hidden><input type="search" placeholder="filter" aria-label="filter rows of '
        f'{clean(caption)}">{lists}<span data-told role="status"></span></div>'
    )
    return (
        f'<div data-board="{len(rows)}">{tools}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{clean(caption)}">{_table(caption, head, made[:SHOWN])}{rest}</div>'
        '<p class="more" hidden><button type="button" data-all></button></p></div>'
    )


def _table(caption: str, head: str, rows: Sequence[str]) -> str:
    body = "".join(rows)
    return f"<table><caption>{clean(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def heat(parts: Sequence[tuple[str, float, str]]) -> str:
    """Densities of layers as small bars in a row: name, share, and what is said about it."""
    told = clean("\n".join(f"{name}: {text}" for name, _, text in parts))
    tops = "".join(f"M{8 * i + 4} 32V{32 - 32 * min(max(share, 0), 1):.0f}" for i, (_, share, _) in enumerate(parts))
    wide = 8 * len(parts)
    return (
        f'<svg class="heat" width="{wide}" height="32"><title>{told}</title><path class="off" d="M1 16H{wide}"/>'
        f'<path d="{tops}"/></svg>'
    )


def _row(row: Row, right: Sequence[int]) -> str:
    words = f' data-words="{clean(row.words)}"' if row.words else ""
    kind = ' class="off-row"' if row.quiet else ""
    cells = "".join(_cell(c, i, i in right) for i, c in enumerate(row.cells))
    return f"<tr{words}{kind}>{cells}</tr>"


def _cell(cell: Cell, i: int, right: bool) -> str:
    tag, scope = ("td", "") if i else ("th", ' scope="row"')
    value = f' data-v="{cell.value:.9g}"' if cell.value is not None else ' data-v=""' if right else ""
    text = clean(cell.text)
    if cell.more:
        text = f'<details class="in"><summary>{text}</summary>{cell.more}</details>'
    return f"<{tag}{scope}{_right(right)}{value}>{text}</{tag}>"


def _right(yes: bool) -> str:
    return ' class="r"' if yes else ""


def _list(head: str, column: int, values: Sequence[str] | dict[str, None]) -> str:
    options = "".join(f"<option>{clean(v)}</option>" for v in values)
    return (
        f'<select data-column="{column}" aria-label="{clean(head)}"><option value="">every {clean(head)}</option>'
        f"{options}</select>"
    )
