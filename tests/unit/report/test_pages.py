"""The report as text and as a page: content, escaping, missing data, size."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.errors import OpenworkError
from openwork.methods import magnitude
from openwork.report import compare_html, compare_text, markdown_table, report_html, report_text, text_table
from openwork.report.numbers import MISSING, number, percent, seconds, shorten, size
from openwork.report.table import Column, verdict

EVIL = """<script>alert(1)</script>"' onload=x & <b>\x00\n\ud800"""
VOID = {"meta", "img", "br", "link", "input", "hr"}
SEEDS = {"seeds": 3, "seconds_mean": 2.5}


class Page(HTMLParser):
    """Checks that tags nest, and remembers tags, attributes and visible text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.note(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def note(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute: {names}"
        self.tags.append(tag)
        self.attributes += attrs


def tensor(name, shape, kept, skipped=""):
    numel = torch.Size(shape).numel()
    row = {"name": name, "shape": list(shape), "numel": numel, "kept": kept, "density": kept / numel}
    return row | {"units": 0 if skipped else numel, "units_kept": 0 if skipped else kept, "skipped": skipped}


@pytest.fixture
def data():
    path = [{"k": k, "density": 1 - k / 40, "G": 1 - k / 41, "energy": 0.3 + k / 100, "removed": 9, "regrown": k % 3,
             "negative": 0} for k in range(30)]  # fmt: skip
    log = [{"step": 10 * i, "phase": p, "share": 0.1, "density": 0.5, "changed": i, "grown": i}
           for i, p in enumerate(("dense", "soften", "sparse", "sparse"))]  # fmt: skip
    log[-1]["path"] = path
    return {
        "format": 1, "openwork": "0.1.0", "method": "spode", "recipe": {"criterion": {"kind": "Flow"}},
        "density": {"asked": 0.1, "targeted": 0.1, "prunable": 0.1, "total": 116 / 1016, "kept": 100,
                    "targeted_numel": 1000, "prunable_numel": 1000, "total_numel": 1016},
        "tensors": [tensor("conv1.weight", (10, 2, 3, 3), 80), tensor("fc.weight", (82, 10), 20),
                    tensor("bn1.weight", (8,), 8, "norm"), tensor("bn1.bias", (8,), 8, "norm")],
        "log": log,
        "manifest": {"seed": 0, "torch": "2.13.0", "model": "resnet8", "data": "digits", "seconds": 61.2},
        "metrics": {"dense": {"accuracy": 0.909, "loss": 0.25}, "pruned": {"accuracy": 0.2, "loss": 3.0},
                    "finetuned": {"accuracy": 0.901, "loss": 0.3}, "dense_control": {"accuracy": 0.95, "loss": 0.2}},
        "curve": [{"stage": s, "step": i, "loss": 1 / i, "accuracy": 0.5} for s in ("dense", "tune") for i in (1, 2, 3)],
    }  # fmt: skip


@pytest.fixture
def masks():
    return {"conv1.weight": torch.rand(10, 2, 3, 3) < 0.4, "fc.weight": torch.rand(82, 10) < 0.1}


def compared():
    rows = [{"method": "dense", "structure": "-", "density": 1.0, "reached": 1.0, "before_mean": None,
             "before_std": None, "after_mean": 0.97, "after_std": 0.002}]  # fmt: skip
    for structure in ("Block(rows=8, cols=8)", "Element()"):
        for density in (0.05, 0.1):
            rows += [{"method": m, "structure": structure, "density": density, "reached": density, "before_mean": 0.3,
                      "before_std": 0.05, "after_mean": 0.9 + density, "after_std": 0.01}
                     for m in ("magnitude", "spode")]  # fmt: skip
    return [row | SEEDS for row in rows]


def test_the_page_says_everything(data, masks):
    text = report_html(data, masks)
    page = Page(text)
    for words in ("10.00 %", "asked 10.00", "900", "of 1,016 parameters", "100 of 1,000", "116 of 1,016", "norm",
                  "masked-dense: no speed-up is claimed", "soften phase", "Energy", "regrown", "Training accuracy",
                  "Grown", "61.2 s", "resnet8", "10x2x3x3", '"kind": "Flow"'):  # fmt: skip
        assert words in page.text.replace("\xa0", " "), words
    assert page.tags.count("img") == 2
    assert '<meta name="viewport"' in text
    assert "prefers-color-scheme:dark" in text
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)


def test_a_dense_control_is_not_the_headline(data):
    text = Page(report_html(data)).text.replace("\xa0", " ")
    card = re.search(
        r"Accuracy, after fine-tuning(.*?)dense$", text.split("On the test set")[0].rsplit("Accuracy", 1)[0]
    )
    assert card
    assert card[1].startswith("90.10 %")
    assert "−0.80 points" in card[1]


def test_every_picture_is_named(data, masks):
    page = Page(report_html(data, masks))
    assert all(value for name, value in page.attributes if name in ("alt", "aria-label"))
    assert page.tags.count("svg") - page.tags.count("figure") < 60
    assert ("lang", "en") in page.attributes


def test_nothing_is_fetched(data, masks):
    for text in (report_html(data, masks), compare_html(compared(), "t")):
        addresses = {v for _, v in Page(text).attributes if v and re.search(r"https?:|//", v)}
        assert {a for a in addresses if not a.startswith("data:image/png")} == {"http://www.w3.org/2000/svg"}
        assert "url(" not in text
        assert "@import" not in text
        assert "default-src 'none'" in text


def poisoned(value):
    """The same data with hostile text in every string and every free key."""
    if isinstance(value, dict):
        return {k: poisoned(v) for k, v in value.items()} | {EVIL: EVIL}
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return value + EVIL if isinstance(value, str) else value


def test_hostile_text_stays_text(data, masks):
    bad = poisoned(copy.deepcopy(data))
    bad["metrics"] |= {EVIL: {"accuracy": 0.5, EVIL: 1.0}}
    bad["log"] = [row | {EVIL: 1.0} for row in bad["log"]]
    text = report_html(bad, {name + EVIL: mask for name, mask in masks.items()})
    text.encode()
    page = Page(text)
    assert {"script", "b"}.isdisjoint(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<script" not in text
    rows = [row | {"method": EVIL, "structure": EVIL} for row in compared()]
    page = Page(compare_html(rows, EVIL))
    assert {"script", "b"}.isdisjoint(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_hostile_text_does_not_break_the_terminal(data):
    bad = poisoned(data)
    bad["tensors"][0] |= {"name": "a\x1b[31m\nb", "skipped": ""}
    text = report_text(bad)
    assert "\x1b" not in text
    assert "a?[31m?b" in text
    assert all(len(line) <= 100 for line in text.splitlines())


PARTS = ("method", "recipe", "density", "tensors", "log", "manifest", "metrics", "curve", "openwork")


@pytest.mark.parametrize("gone", [*[(p,) for p in PARTS], PARTS])
@pytest.mark.parametrize("empty", ["absent", "none"])
def test_missing_parts_are_left_out(data, gone, empty):
    for part in gone:
        if empty == "absent":
            del data[part]
        else:
            data[part] = None
    Page(report_html(data))
    assert report_text(data)
    assert verdict(data)


def test_missing_cells_are_dashes(data):
    for row in data["tensors"]:
        row.update(density=None, kept=float("nan"))
    data["metrics"]["pruned"] = {"accuracy": None}
    data["metrics"]["finetuned"] = {"accuracy": float("nan")}
    data["log"][1]["density"] = None
    data["log"][2]["step"] = None
    page = Page(report_html(data))
    assert "nan" not in page.text.lower()
    assert "None" not in page.text
    assert "nan" not in report_text(data)


def test_empty_masks_are_not_drawn_and_more_than_twelve_are_counted(data):
    masks = {f"m{i}": torch.ones(2, 2 + i, dtype=torch.bool) for i in range(20)} | {"none": torch.ones(0, 2).bool()}
    page = Page(report_html(data, masks))
    assert page.tags.count("img") == 12
    assert "8 smaller masks are not drawn" in page.text
    assert "m19" in page.text


def test_a_page_of_500_tensors_stays_small(data, masks):
    data["tensors"] = [tensor(f"encoder.layer.{i}.attention.self.query.weight", (768, 768), 29491) for i in range(500)]
    data["log"] = [dict(data["log"][0], step=i, changed=i % 77) for i in range(5000)]
    big = {f"layer{i}": torch.rand(768, 768) < 0.5 for i in range(12)}
    text = report_html(data, big)
    assert len(text.encode()) < 1_000_000
    Page(text)


def test_the_text_report(data):
    data["tensors"][0]["name"] = "a" * 150
    data["tensors"].append(tensor("embedding", (50_000, 4_096), 10_240_000))
    text = report_text(data)
    lines = text.splitlines()
    assert lines[0] == "spode: density 10.00 % reached, 10.00 % asked"
    assert lines[1] == "  targeted  10.00 %  100 of 1,000  weights of the tensors that were pruned"
    assert lines[3] == "  total     11.42 %  116 of 1,016  parameters of the model"
    assert max(map(len, lines)) <= 100
    table = lines[lines.index("") + 1 :][:5]
    assert [len(line) for line in table] == [len(table[0])] * 5
    assert " ".join(table[4].split()) == "embedding 50000x4096 " + 2 * "10,240,000 / 204,800,000 " + "5.00 %"
    assert "  norm: 2 tensors, 16 entries (bn1.weight, bn1.bias)" in lines
    assert re.search(r"^after fine-tuning +90\.10 % +0\.3$", text, re.M)
    assert "900 of 1,016 parameters are zero" in text
    assert text.splitlines()[-1].startswith("made by: openwork 0.1.0, seed 0")


def test_bytes_of_the_verdict(data):
    # dense 4 * 1016; 116 values of 4 bytes and 1000 bits
    assert "take 4.1 kB;" in verdict(data)
    assert "would take 589 B." in verdict(data)


def test_tables():
    columns = [Column("name"), Column("n", right=True)]
    assert text_table([["a|b", "1"]], columns) == "name  n\n----  -\na|b   1"
    assert markdown_table([["a|b", "1"]], columns) == "| name | n |\n| :--- | ---: |\n| a\\|b | 1 |"
    assert text_table([], columns).splitlines() == ["name  n", "----  -"]
    narrow = text_table([["x" * 90, "y" * 60]], [Column("a", elastic=True), Column("b")], width=80)
    assert [len(line) for line in narrow.splitlines()][1:] == [80, 80]


@pytest.mark.parametrize("table", [text_table, markdown_table])
def test_tables_refuse_ragged_rows(table):
    with pytest.raises(OpenworkError, match="row 1: a table of 2 columns needs as many cells, got 1"):
        table([["a", "b"], ["c"]], [Column("x"), Column("y")])


def test_comparison_as_text():
    text = compare_text(compared())
    assert max(map(len, text.splitlines())) <= 110
    assert "sample standard deviation" in text
    row = next(line for line in text.splitlines() if line.startswith("spode"))
    assert " ".join(row.split()) == "spode Block(rows=8, cols=8) 0.05 0.05 3 30.0 ± 5.0 % 95.0 ± 1.0 % 2.50 s"
    assert "97.0 ± 0.2 %" in text


def test_comparison_as_page():
    page = Page(compare_html(compared(), "Bench & more"))
    assert "Bench & more" in page.text
    assert "sample standard deviation" in page.text
    assert page.tags.count("figure") == 2
    assert [v for n, v in page.attributes if n == "class" and v == "mark"] == ["mark", "mark"]
    one = [r for r in compared() if r["density"] in (1.0, 0.05)]
    assert Page(compare_html(one, "t")).tags.count("circle") == 4
    Page(compare_html([], "t"))
    assert compare_text([])


def test_one_seed_has_no_spread():
    rows = [row | {"seeds": 1, "after_std": None, "before_std": None} for row in compared()]
    assert "±" not in "".join(compare_text(rows).splitlines()[:-1])
    Page(compare_html(rows, "t"))


def test_numbers_read_well():
    assert percent(1e-12) != percent(0)
    assert percent(True) == MISSING
    assert number(float("inf")) == number("3") == MISSING
    assert seconds(None) == size(None) == MISSING
    assert size(3.2e10) == "32.0 GB"
    assert shorten("abcdefgh", 4) == "abcd"
    assert json.loads(json.dumps(shorten("x" * 50, 20))) == "x" * 8 + "..." + "x" * 9


def test_layer_collapse_is_told():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 25), nn.ReLU(), nn.Linear(25, 4))
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    told = ow.prune(copy.deepcopy(model), magnitude(density=0.3, scope="global")).report()
    assert "Layer collapse. Empty: 2.weight. Give every layer a share (scope='layer') or a floor." in " ".join(
        told.split()
    )
    with torch.no_grad():
        model[2].weight[0, :2] = 5.0
    found = ow.prune(model, magnitude(density=0.3, scope="global"))
    words = "Layer collapse. Less than 1 % kept: 2.weight. Give every layer a share"
    assert words in " ".join(found.report().split())
    assert words in report_html(found.to_dict())
    for fine in (magnitude(density=0.3, scope="layer"), magnitude(density=0.003, scope="layer")):
        result = ow.prune(copy.deepcopy(model), fine)
        assert "collapse" not in result.report()
