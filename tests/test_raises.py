"""Every ``raise`` of the package has a test that matches its message."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = "\n".join(p.read_text() for p in sorted((ROOT / "tests").rglob("*.py")) if p.name != "test_raises.py")
# The regular expressions of the tests, with escapes and wildcards taken out, so that messages can be looked up.
MATCHED = re.sub(r"\\(.)", r"\1", TESTS)


def literals(node: ast.AST) -> list[str]:
    """The constant parts of the message of a raise."""
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def words(text: str) -> list[str]:
    """Runs of three words and more, the pieces that a test can quote."""
    return re.findall(r"[A-Za-z][a-z'_-]*(?: [A-Za-z(][A-Za-z'()_-]*){2,}", text)


def is_quoted(message: list[str]) -> bool:
    """Whether some three consecutive words of the message stand in a test."""
    for part in message:
        for run in words(part):
            tokens = run.split(" ")
            if any(" ".join(tokens[i : i + 3]) in MATCHED for i in range(len(tokens) - 2)):
                return True
    return False


def raises() -> list[tuple[str, list[str]]]:
    found = []
    for file in sorted((ROOT / "src" / "openwork").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                message = literals(node.exc.args[0])
                found.append((f"{file.relative_to(ROOT)}:{node.lineno}", message))
    return found


def test_every_raise_is_tested():
    missing = [f"{where}: {' ... '.join(message)[:90]}" for where, message in raises() if not is_quoted(message)]
    assert not missing, f"{len(missing)} of {len(raises())} raises have no test:\n" + "\n".join(missing)
