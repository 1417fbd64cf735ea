"""The page of a sweep: whole, escaped, and with what the numbers say."""

from tests.unit.report.test_pages import EVIL, Page

from openwork.report.sweep_page import sweep_html, sweep_lines, sweep_svg, sweep_table


def made(**changes):
    rows = [
        {"sparsity": s, "loss": loss, "perplexity": 2.0 + i, "std": None, "top1": None, "empty": ["a"] if i == 3 else [],
         "layers": {} if i == 0 else {"a": s, EVIL: s / 2}}
        for i, (s, loss) in enumerate([(0.0, 1.0), (0.2, 1.0), (0.5, 1.1), (0.8, 3.0)])
    ]  # fmt: skip
    essential = {"tolerance": 0.2, "chord": 0.5, "segments": 0.5, "allowed": 0.01, "knee": True, "sharpness": 7.1234}
    return {"model": EVIL, "text": EVIL, "method": "magnitude", "ranked": "all 2 matrices", "targets": 1000, "length": 8,
            "rows": rows, "essential": essential, "caveats": [EVIL], **changes}  # fmt: skip


def test_the_page_is_whole_and_escaped():
    page = Page(sweep_html(made()))
    assert "script" not in page.tags
    for words in (
        "20.0 %",
        "7.12 times as steep behind it",
        "knee by the chord, knee by two lines: 50.00 %",
        "all 2 matrices",
    ):
        assert words in page.text
    assert "<script" not in sweep_svg(made())


def test_columns_that_nothing_fills_are_left_out():
    heads, right, rows = sweep_table(made())
    assert heads == ["sparsity", "perplexity", "times dense", "loss", "emptiest matrix", "above 99 %"]
    assert (right, rows[3][-1], rows[3][2]) == ([0, 1, 2, 3, 5], "1", "7.389")


def test_a_curve_without_a_knee_says_so():
    told = sweep_lines(made(essential={**made()["essential"], "knee": False}))
    assert told[2].endswith("no knee: no steeper behind it")
    flat = sweep_lines(made(essential={**made()["essential"], "sharpness": None}))
    assert flat[2].endswith("flat before it")
