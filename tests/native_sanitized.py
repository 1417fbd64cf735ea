"""Run the kernel tests on the extension in a build folder; ``native_sanitizers.sh`` calls it."""

import importlib.util
import sys
from pathlib import Path

import pytest


def main():
    (file,) = Path(sys.argv[1]).glob("_native*.so")
    spec = importlib.util.spec_from_file_location("openwork._native", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["openwork._native"] = module
    spec.loader.exec_module(module)
    import openwork.kernels

    assert openwork.kernels.native() is module
    print(f"{file}: {', '.join(module.isas())}")
    files = [
        f"tests/unit/kernels/test_{name}.py" for name in ("linear_kernels", "conv_kernels", "int8_kernels", "threads")
    ]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return pytest.main([*options, "-k", "not python", *files])


if __name__ == "__main__":
    sys.exit(main())
