"""What the package asks for: pinned, named by an extra, used, and free to use. An audit for known holes needs a network."""

import ast
import re
import sys
from importlib.metadata import PackageNotFoundError, files, metadata
from pathlib import Path

import pytest

packaging = pytest.importorskip("packaging.requirements")
tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = {"PIL": "pillow", "lm_eval": "lm-eval", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Packages that are not called what they are imported as."""
UNSEEN = {
    "accelerate": "transformers.Trainer imports it",
    "onnx": "imported by name, in onnx/file.py",
    "onnxruntime": "likewise",
    "peft": "merge_peft is given its models",
}
"""Extras that no import statement shows."""
PERMISSIVE = {"0BSD", "Apache", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "LLVM-exception",
              "MIT", "MIT-CMU", "PSF-2.0", "Zlib"}  # fmt: skip


def requirements(lines):
    """Name -> requirement, without the extras of this package itself."""
    found = [packaging.Requirement(line) for line in lines]
    return {r.name.lower(): r for r in found if r.name != "openwork"}


CORE = requirements(PROJECT["dependencies"])
EXTRAS = {name: requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}
TOOLS = EXTRAS.pop("dev")
ASKED = {name: r for part in (CORE, TOOLS, *EXTRAS.values()) for name, r in part.items()}


def imported(folder):
    """Packages outside the standard library and this one: name to install -> a file that imports it."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {n.split(".")[0] for n in names} - sys.stdlib_module_names - {"openwork"}:
                found.setdefault(NAMES.get(name, name), file)
    return found


IMPORTED = imported(ROOT / "src" / "openwork")


def test_every_pin_lies_in_the_range_that_is_asked_for():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = requirements(lines)
    assert len(pins) == len(lines)
    assert not ASKED.keys() - pins.keys()
    for name, pin in pins.items():
        (version,) = pin.specifier
        assert version.operator == "==", pin
        if name in ASKED:
            assert ASKED[name].specifier.contains(version.version), f"{pin} is outside {ASKED[name]}"


def test_what_is_imported_is_asked_for():
    named = {*CORE, *(name for part in EXTRAS.values() for name in part)}
    assert not {name: file for name, file in IMPORTED.items() if name not in named}


def test_what_is_asked_for_is_used():
    assert not UNSEEN.keys() & IMPORTED.keys(), "is seen now"
    for extra, part in {"": CORE, **EXTRAS}.items():
        for name in part:
            assert name in IMPORTED or name in UNSEEN, f"{name} of {extra or 'the core'} is not used"


def test_errors_name_extras_that_exist():
    told = {e for file in (ROOT / "src").rglob("*.py") for e in re.findall(r"openwork\[([\w-]+)\]", file.read_text())}
    assert told <= EXTRAS.keys()
    assert EXTRAS.keys() - told == {"peft"}, "nobody is told to install it"


def _by_text(name):
    """The MIT licence is known by its first sentence."""
    texts = [f.read_text() for f in files(name) or () if "licenses" in f.parts]
    return "MIT" if any(" ".join(MIT.split()) in " ".join(t.split()) for t in texts) else ""


MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction"""


@pytest.mark.parametrize("name", sorted(ASKED.keys() - TOOLS.keys()))
def test_licences_let_everybody_use_it(name):
    """As the installed package declares it: an expression, else a classifier, else a line of text, else its file."""
    try:
        told = metadata(name)
    except PackageNotFoundError:
        pytest.skip("not installed")
    expression = told.get("License-Expression") or ""
    classifiers = [c.rsplit(" :: ", 1)[-1] for c in told.get_all("Classifier") or () if c.startswith("License ::")]
    if expression:
        assert set(re.findall(r"[\w.-]+", expression)) - {"AND", "OR", "WITH"} <= PERMISSIVE, expression
    else:
        words = " ".join(classifiers) or told.get("License") or _by_text(name)
        assert re.search(r"\b(Apache|MIT|BSD|PSF)\b", words), words
        assert not re.search(r"GPL|GNU|AGPL|Proprietary", words), words
