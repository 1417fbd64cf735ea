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


def windows(text: str, length: int) -> set[str]:
    """Every run of so many words without punctuation between them."""
    runs = re.findall(r"[A-Za-z][\w'().-]*(?: [\w'().=-]+)+", text)
    return {" ".join(t[i : i + length]) for run in runs if (t := run.split(" ")) for i in range(len(t) - length + 1)}


def is_quoted(message: list[str]) -> bool:
    """Whether a test holds three consecutive words of a part of the message; two, or one, where it has no more."""
    found: set[str] = set()
    for part in message:
        found |= windows(part, 3) or windows(part, 2)
    found = found or {word for part in message for word in re.findall(r"[\w-]{4,}", part)}
    return any(w in MATCHED for w in found) or not any(part.strip(" :;,.") for part in message)


def raises() -> list[tuple[str, list[str]]]:
    found = []
    for file in sorted((ROOT / "src" / "openwork").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                if isinstance(node.exc.func, ast.Name) and node.exc.func.id == "SystemExit":
                    continue
                message = literals(node.exc.args[0])
                found.append((f"{file.relative_to(ROOT)}:{node.lineno}", message))
    return found


def test_every_raise_is_tested():
    missing = [f"{where}: {' ... '.join(message)[:90]}" for where, message in raises() if not is_quoted(message)]
    assert not missing, f"{len(missing)} of {len(raises())} raises have no test:\n" + "\n".join(missing)
