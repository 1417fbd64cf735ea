#!/bin/sh
# Builds the native kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs their tests on them.
#
#   tests/native_sanitizers.sh [BUILD_FOLDER]
#
# PYTHON names the interpreter (default .venv/bin/python); ISAS=all builds and runs every instruction set of this
# processor, not only the portable one. Scratch memory then has exactly the size that was asked for, and torch's own
# buffers are guarded too. Takes some minutes, most of them for the compiler.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-"$root/.venv/bin/python"}
build=${1:-"$root/build/sanitized"}
case ${ISAS:-portable} in all) only=OFF ;; *) only=ON ;; esac
PATH=$(dirname "$python"):$PATH
if ! command -v c++ > /dev/null || [ ! -e "$(c++ -print-file-name=libasan.so)" ]; then
  echo "no C++ compiler with AddressSanitizer: the native kernels were not run under it"
  exit 0
fi
mkdir -p "$(dirname "$build")"
cmake -G Ninja -S "$root/native" -B "$build" -DPython_EXECUTABLE="$python" -DOPENWORK_SANITIZE=ON \
  -DOPENWORK_ONLY_PORTABLE=$only -DCMAKE_MAKE_PROGRAM="$(command -v ninja)" > "$build.log" 2>&1 || { cat "$build.log"; exit 1; }
ninja -C "$build"
cd "$root"
ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
OPENWORK_CACHE= OMP_NUM_THREADS=1 PYTHONMALLOC=malloc PYTHONPATH="$root/src:$root" \
LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so) $(c++ -print-file-name=libstdc++.so.6)" \
  "$python" tests/native_sanitized.py "$build"
