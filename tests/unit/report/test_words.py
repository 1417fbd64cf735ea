"""Every word that heads a column of a report, or names a control, is in the glossary."""

import re
from pathlib import Path

from openwork.lab.suite import DENSE, EXTRA, LONG, RANDOM, RENEWED, SHUFFLED, SMALL
from openwork.report import compare_page, curves, suite_board, suite_page

GLOSSARY = (Path(__file__).parents[3] / "docs" / "glossary.md").read_text(encoding="utf-8")
KNOWN = {word.strip() for first in re.findall(r"^\| ([^|]+) \|", GLOSSARY, re.M) for word in (first, *first.split(","))}


def test_reports_use_the_words_of_the_glossary():
    heads = {*suite_page.HEADS, *suite_page.DETAIL_HEADS, *suite_page.SANITY_HEADS, *compare_page.HEADS}
    heads |= {
        *suite_board.HEADS,
        suite_board.TOP5,
        *suite_board.PLACE,
        *suite_board.LAST,
        *(head for _, head in suite_board.EXTRA),
    }
    controls = {DENSE, EXTRA, LONG, SMALL, *RANDOM, *(tail.strip(", ") for tail in (SHUFFLED, RENEWED)), curves.FRONT}
    missing = sorted((heads | controls) - KNOWN - {DENSE})
    assert not missing, f"not in docs/glossary.md: {missing}"
    assert "gibberish" not in KNOWN


def test_no_word_is_explained_twice():
    first = [
        f.strip() for f in re.findall(r"^\| ([^|]+) \|", GLOSSARY, re.M) if f.strip() not in ("here", "word", "---")
    ]
    assert len(first) == len(set(first))
