"""The public names and their signatures, one a line, against ``api.txt``.

After an intended change: ``python tests/test_public_api.py --write``, and the change shows in review.
"""

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

SNAPSHOT = Path(__file__).with_name("api.txt")


def signature(thing):
    """The signature as text, without the addresses of default objects; errors are all alike."""
    if isinstance(thing, type) and issubclass(thing, BaseException):
        return "(*args)"
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))


def own_methods(cls):
    """The public functions a class defines itself."""
    for name, member in sorted(vars(cls).items()):
        member = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if inspect.isfunction(member) and not name.startswith("_"):
            yield name, member


def describe(name, thing):
    """One line for a thing, more for a class with methods or a module with ``__all__``."""
    if isinstance(thing, ModuleType):
        yield f"{name}: module"
        for inner in sorted(getattr(thing, "__all__", ())):
            yield from describe(f"{name}.{inner}", getattr(thing, inner))
    elif isinstance(thing, type):
        yield f"{name}{signature(thing)}"
        yield from (f"{name}.{method}{signature(function)}" for method, function in own_methods(thing))
    elif callable(thing):
        yield f"{name}{signature(thing)}"
    else:
        yield f"{name}: {type(thing).__name__}"


def current():
    package = importlib.import_module("openwork")
    return [line for name in sorted(package.__all__) for line in describe(name, getattr(package, name))]


def test_public_api_is_the_recorded_one():
    recorded, found = SNAPSHOT.read_text(encoding="utf-8").splitlines(), current()
    gone, new = sorted(set(recorded) - set(found)), sorted(set(found) - set(recorded))
    assert recorded == found, f"gone: {gone}; new: {new}; if intended: python {Path(__file__).name} --write"


def test_no_public_name_is_listed_twice():
    names = importlib.import_module("openwork").__all__
    assert len(names) == len(set(names))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_public_api.py --write")
    SNAPSHOT.write_text("\n".join(current()) + "\n", encoding="utf-8")
