"""The rooms of the library stand in one order, heavy packages stay optional, files stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "openwork"
ORDER = (
    "version", "errors", "core", "report", "graph", "structure", "schedules", "stats", "metrics", "formats", "kernels",
    "criteria", "gpu", "allocation", "relax", "inverse", "rules", "engine", "recovery", "data", "zoo", "runtime", "ship",
    "onnx", "methods", "llm", "apps", "lab", "adapters", "cli",
)  # fmt: skip
ON_TOP = {"__init__", "__main__"}
OPTIONAL = {
    "transformers", "peft", "lm_eval", "lightning", "accelerate", "sklearn", "PIL", "scipy", "onnx", "onnxruntime",
    "diffusers", "triton", "ray", "optuna", "resvg_py",
}  # fmt: skip
LATE = "openwork.gpu.device"  # Triton's kernels: a decorator needs Triton on import, so nobody imports them on import
FILES = sorted(PACKAGE.rglob("*.py"))


def room(file):
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree, package):
    """Every absolute module name a tree imports; ``from a import b`` counts as ``a`` and as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*parts, *filter(None, [node.module])))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_import_time(tree):
    """The statements that run on import: everything outside functions and ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import_time(node)


def upward(own, names):
    """The imports that a room may not have: those of a room that stands later in ``ORDER``."""
    rooms = {name: name.split(".")[1] for name in names if name.startswith("openwork.")}
    return [name for name, other in rooms.items() if other in ORDER and ORDER.index(other) > ORDER.index(own)]


def whole(tree):
    nodes = [node for node in at_import_time(tree) if isinstance(node, ast.Import)]
    return [alias for node in nodes for alias in node.names if alias.name == "openwork"]


def heavy(tree):
    nodes = [node for node in at_import_time(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [name for node in nodes for name in imported(node, ()) if name.split(".")[0] in OPTIONAL]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_file(file):
    text = file.read_text(encoding="utf-8")
    tree, own = ast.parse(text), room(file)
    package = ("openwork", *file.relative_to(PACKAGE).parent.parts)
    assert own in ORDER or own in ON_TOP, f"{own} has no place in ORDER; add it where it belongs"
    if own in ORDER:
        assert not upward(own, imported(tree, package)), f"{own} imports from a later room"
        assert not whole(tree), "import openwork inside the function that needs it: on import it is half made"
    late = [node for node in at_import_time(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    if ".".join(package).startswith(LATE):
        assert {name.split(".")[0] for name in heavy(tree)} <= {"triton"}
    else:
        assert not [name for node in late for name in imported(node, package) if name.startswith(LATE)], (
            "import it late"
        )
        assert not heavy(tree), "optional packages are imported inside the function that uses them"
    limit = 150 if own == "methods" else 400
    assert len(text.splitlines()) <= limit, f"more than {limit} lines; split it by idea"


def test_the_package_is_found():
    assert len(FILES) > 20


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import openwork.cli", ["openwork.cli"]),
        ("from openwork import zoo", ["openwork.zoo"]),
        ("from ..zoo.mlp import mlp", ["openwork.zoo.mlp", "openwork.zoo.mlp.mlp"]),
        ("def f():\n    from openwork.zoo import mlp", ["openwork.zoo", "openwork.zoo.mlp"]),
        ("from openwork.core import select\nimport torch\nfrom . import idx", []),
    ],
)
def test_an_upward_import_is_seen(code, names):
    assert upward("data", list(imported(ast.parse(code), ("openwork", "data")))) == names


def test_the_whole_package_is_seen_on_import_only():
    assert whole(ast.parse("import openwork"))
    assert not whole(ast.parse("from openwork import errors\ndef f():\n    import openwork"))


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import sklearn.datasets", ["sklearn.datasets"]),
        ("try:\n    from PIL import Image\nexcept ImportError:\n    pass", ["PIL", "PIL.Image"]),
        ("def f():\n    import scipy", []),
        ("if TYPE_CHECKING:\n    import transformers", []),
    ],
)
def test_a_heavy_import_is_seen(code, names):
    assert heavy(ast.parse(code)) == names
