"""The kernels compile for Ampere and Hopper without such a GPU: tensor cores, asynchronous copies, memory, no spills.

This is what can be known of speed without a device; it says nothing about the time a kernel takes.
"""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from openwork.gpu.interpreter import interpreted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: openwork[gpu]"),
    pytest.mark.skipif(interpreted(), reason="TRITON_INTERPRET is set, nothing is compiled"),
]
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
TABLES = {"others", "places", "items", "splits", "columns", "chunks"}
SHARED = {80: 163 * 1024, 90: 227 * 1024}
EPILOGUE = {"HAS_BIAS": True, "HAS_RESIDUAL": True, "ACTIVATION": "gelu", "KEEP": False, "WIDE": False}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(tmp, kernel, dtype, capability, constants, config):
    """PTX, bytes of shared memory and bytes of stack a thread, for pointers and row lengths divisible by 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds, hints = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            kinds[name] = "constexpr"
            continue
        numbers = name.endswith("stride") or name in ("size", "inner_size", "rows", "cols", "tokens", "count", "span",
                                                      "n_items", "bucket")  # fmt: skip
        kinds[name] = "i32" if numbers else "*i32" if name in TABLES else f"*{TYPES[dtype]}"
        if name == "partial":
            kinds[name] = "*fp32"
        if not numbers or name.endswith(("stride", "size")) or name in ("rows", "cols"):
            hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants, attrs=hints)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = done.asm["ptx"]
    binary = tmp / "kernel.cubin"
    binary.write_bytes(done.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    return ptx, done.metadata.shared, int(re.search(r"STACK:(\d+)", said).group(1))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("inner", "outer", "turned"), [(16, 16, False), (64, 64, False), (128, 128, True)])
def test_product(capability, inner, outer, turned, tmp_path):
    from openwork.gpu.device import configs
    from openwork.gpu.device.product import product_kernel

    named = {"x": torch.zeros(1, dtype=torch.bfloat16), "OUTER": outer, "bucket": 4096}
    config = configs.choose(configs.PRODUCT, named)[1]
    constants = {"INNER": inner, "OUTER": outer, "SK": outer if turned else 1, "SN": 1 if turned else inner,
                 "GATHER": turned, "PRECISION": "ieee", "UPCAST": False, **EPILOGUE, **config.kwargs}  # fmt: skip
    ptx, shared, stack = compiled(tmp_path, product_kernel, torch.bfloat16, capability, constants, config)
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in ptx
    assert re.search(r"cp\.async\.cg\.shared\.global .* 0x10", ptx), "copies of 16 bytes, while the last tile is used"
    assert shared <= SHARED[capability]
    assert stack == 0


def test_outer(tmp_path):
    from openwork.gpu.device import configs
    from openwork.gpu.device.outer import outer_kernel

    config = configs.shallow(configs.OUTER_CONFIGS, {"x": torch.zeros(1, dtype=torch.bfloat16), "HEIGHT": 64})[1]
    constants = {"HEIGHT": 64, "WIDTH": 16, "BN": 128, "WIDE": False, "PRECISION": "ieee", "UPCAST": False}
    ptx, shared, stack = compiled(tmp_path, outer_kernel, torch.bfloat16, 90, {**constants, **config.kwargs}, config)
    assert "wgmma.mma_async" in ptx
    assert re.search(r"cp\.async\.cg\.shared\.global .* 0x10", ptx)
    assert (shared <= SHARED[90], stack) == (True, 0)


def test_decode_and_combine(tmp_path):
    from openwork.gpu.device import configs
    from openwork.gpu.device.decode import decode_kernel
    from openwork.gpu.device.finish import combine_kernel

    config = configs.narrow(configs.DECODE, {"OUTER": 64, "TOKENS": 1})[0]
    constants = {"INNER": 64, "OUTER": 64, "SK": 1, "SN": 64, "GATHER": False, "TOKENS": 1, **EPILOGUE, **config.kwargs}
    ptx, _, stack = compiled(tmp_path, decode_kernel, torch.bfloat16, 90, constants, config)
    assert re.search(r"ld\.global\S*\.v4\.b32", ptx), "weights are read 16 bytes a thread"
    assert stack == 0
    plain = SimpleNamespace(num_warps=4, num_stages=2)
    _, _, stack = compiled(tmp_path, combine_kernel, torch.float32, 90, {"OUTER": 128, "BT": 16, **EPILOGUE}, plain)
    assert stack == 0


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("tokens", [8, 64, 4096])
@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_every_call_has_a_few_configurations(size, tokens, side):
    from openwork.gpu.device import configs

    x = torch.zeros(1, dtype={2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[size])
    products = configs.choose(configs.PRODUCT, {"x": x, "OUTER": side, "bucket": tokens})
    assert 1 <= len(products) <= 4
    assert min(c.kwargs["BM"] for c in products) <= max(16, tokens)
    assert 1 <= len(configs.shallow(configs.OUTER_CONFIGS, {"x": x, "HEIGHT": side})) <= 3
    for group in (1, 2, 4):
        assert 1 <= len(configs.narrow(configs.DECODE, {"OUTER": side, "TOKENS": group})) <= 4
