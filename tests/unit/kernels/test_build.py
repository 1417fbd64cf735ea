"""What is built where a compiler lacks an instruction set, or everything that kernels are written in."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SETS = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the sets are those of x86-64"),
    pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="needs cmake and a C++ compiler"),
]


def configured(folder, *options, unknown=""):
    """What cmake says, and the sets it would build; the compiler refuses flags that hold ``unknown``."""
    pytest.importorskip("nanobind")
    if unknown:
        compiler = folder / "c++"
        refuse = f'for flag; do case $flag in *{unknown}*) echo "unknown option $flag" >&2; exit 1 ;; esac; done'
        compiler.write_text(f'#!/bin/sh\n{refuse}\nexec {shutil.which("c++")} "$@"\n')
        compiler.chmod(0o755)
        options = (*options, f"-DCMAKE_CXX_COMPILER={compiler}")
    command = ["cmake", "-S", str(ROOT / "native"), "-B", str(folder / "build"), "-G", "Unix Makefiles"]
    if not shutil.which("make"):
        pytest.importorskip("ninja")
        command[-1] = "Ninja"
    run = subprocess.run(
        [*command, f"-DPython_EXECUTABLE={sys.executable}", *options], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    files = " ".join(str(f) for f in (folder / "build").rglob("*"))
    if command[-1] == "Ninja":
        files = (folder / "build" / "build.ninja").read_text()
    return " ".join(run.stderr.split()), [name for name in SETS if f"kernels_{name}.dir" in files]


def test_everything_is_built_where_the_compiler_knows_it(tmp_path):
    said, built = configured(tmp_path)
    assert [name for name in SETS if f"kernels for {name} are left out" not in said] == built


@pytest.mark.parametrize(
    ("unknown", "left"),
    [("amx", ["amx"]), ("avx512bf16", ["avx512_bf16", "amx"]), ("avx512", SETS[1:]), ("-mavx", SETS)],
)
def test_sets_that_the_compiler_lacks_are_left_out(tmp_path, unknown, left):
    said, built = configured(tmp_path, unknown=unknown)
    assert not set(left) & set(built)
    assert f"the kernels for {left[0]} are left out: the C++ compiler does not know" in said
    assert "avx2" in built or "-mavx" in unknown


def test_a_set_is_left_out_by_hand(tmp_path):
    said, built = configured(tmp_path, "-DHAVE_AMX=OFF")
    assert "amx" not in built
    assert "HAVE_AMX is off" in said


def test_another_kind_of_compiler_builds_nothing(tmp_path):
    said, built = configured(tmp_path, "-DCMAKE_CXX_COMPILER_ID=MSVC", "-DCMAKE_CXX_COMPILER_ID_RUN=ON")
    assert "openwork is installed without its native kernels" in said
    assert not built
