"""The quick variant of the benches that need a few seconds: they run, and their rows are complete."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from openwork.data.places import assets_folder

BENCH = Path(__file__).parents[1] / "bench"
HEADERS = ("/usr/include/libxsmm.h", "/usr/local/include/libxsmm.h")


def quick(name, folder):
    """Run one bench with --quick in a copy of its folder; its result."""
    for file in (*BENCH.glob("*.py"), *BENCH.glob("*.cpp")):
        shutil.copy(file, folder)
    assets = assets_folder()  # found from here; the copy lies elsewhere
    run = subprocess.run(
        [sys.executable, f"{name}.py", "--quick"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **({"OPENWORK_ASSETS": str(assets)} if assets else {})},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((folder / "results" / f"{name}_quick.json").read_text())
    assert found["machine"]["threads"] == 1
    return found


def test_quick_formats(tmp_path):
    found = quick("formats", tmp_path)
    assert {r["sparsity"] for r in found["rows"]} >= {0.5, 0.8, 0.9, 0.95}
    for row in found["rows"]:
        if row["dtype"] == "float32":
            kept = 1 - row["sparsity"]  # of a few large blocks, so roughly
            index = 0.5 if "CSR" in row["pattern"] else 0.13
            assert 0.9 * kept < row["ratio"] < (1.1 + index) * kept + 0.1
            assert row["error"] == 0


@pytest.mark.parametrize(
    "name",
    [
        "init_digits",
        "floor_digits",
        "gradual_digits",
        "shares_digits",
        "rounds_digits",
        "digits_oneshot",
        "digits_blocks",
        "random_search",
        "adaptive_rounds",
        "causes",
        "rearranged",
    ],
)
def test_quick_bench(name, tmp_path):
    found = quick(name, tmp_path)
    accuracy = [r.get("accuracy") or r["after"] for r in found["rows"]]
    assert all(0 < a["mean"] <= 1 for a in accuracy)
    densest = max(r["density"] for r in found["rows"])
    assert max(a["mean"] for r, a in zip(found["rows"], accuracy, strict=True) if r["density"] == densest) > 0.15


def test_quick_probability_rates(tmp_path):
    slow, fast = quick("probability_rates", tmp_path)["rows"]
    assert slow["rate"] < fast["rate"]
    assert slow["steps"] == fast["steps"]
    assert 0 < slow["accuracy"]["mean"] < fast["accuracy"]["mean"] < 1  # in a hundred steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "methods"), [("obspa", 10), ("beta_rank", 5), ("precrop", 4), ("masksparsity", 5)], ids=lambda v: str(v)
)
def test_quick_structural_bench(name, methods, tmp_path):
    found = quick(name, tmp_path)
    assert len({r["method"] for r in found["rows"]}) == methods
    for row in found["rows"]:
        shares = [v["mean"] for k, v in row.items() if isinstance(v, dict) and not k.startswith("scale")]
        assert shares
        assert all(0 < share <= 1 for share in shares)


@pytest.mark.slow
def test_quick_essential(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'openwork[hf]'")
    if assets_folder() is None:
        pytest.skip("no asset folder: set OPENWORK_ASSETS to the folder with stories260K.bin")
    rows = {(r["model"], r["method"]): r for r in quick("essential", tmp_path)["rows"]}
    assert len(rows) == 7
    for row in rows.values():
        assert len(row["sparsity"]) == len(row["score"]) == len(row["values"]) >= 4
        assert {row["tolerance"], row["chord"], row["segments"], *row["of each seed"]} <= set(row["sparsity"])
    vit = rows["ViT, classes of 2,000 images", "OMP"]
    assert vit["cosine"]["mean"] > 0.8 > 0.6 > vit["chance"]["mean"] > 0.4
    stories = [r for (model, _), r in rows.items() if model.startswith("Llama")]
    assert all(r["score"] == sorted(r["score"], reverse=True) and r["tolerance"] < 0.5 for r in stories)


@pytest.mark.slow
def test_quick_architectures(tmp_path):
    for package in ("transformers", "diffusers", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'openwork[hf,onnx]' diffusers")
    run = subprocess.run(
        [sys.executable, str(BENCH / "architectures.py"), "--quick", "--out", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "architectures_quick.json").read_text())["rows"]
    assert len(rows) == 4
    for row in rows:
        if row["family"] == "refused":
            assert "torch.export cannot follow the forward pass" in row["refused"]
            continue
        assert row["small"] < row["params"]
        assert row["coverage"] > 0.9
        assert all(row[key] <= 1e-5 for key in ("error", "reload", "export", "onnx")), row


def test_quick_libxsmm(tmp_path):
    if shutil.which("g++") is None or not any(Path(f).is_file() for f in HEADERS):
        pytest.skip("LIBXSMM is not installed: apt-get install g++ libxsmm-dev")
    (row,) = quick("libxsmm", tmp_path)["rows"]
    assert row["error"] < 1e-5
    assert 0 < row["low"] <= row["ratio"] <= row["high"]


def test_quick_gpu_bench(tmp_path):
    """Every product of the GPU bench runs under Triton's interpreter and is right; no time is looked at."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install 'openwork[gpu]'")
    for name in ("common.py", "gpu_kernels.py"):
        shutil.copy(BENCH / name, tmp_path)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for arguments in (["--quick"], []):
        run = subprocess.run(
            [sys.executable, "gpu_kernels.py", *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
    assert "skipped: no CUDA GPU" in run.stdout
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["gpu_kernels_quick.json"]
    rows = json.loads((tmp_path / "results" / "gpu_kernels_quick.json").read_text())["rows"]
    assert len(rows) == 5
    for row in rows:
        allowed = 0.02 if row["dtype"] == "bfloat16" else 1e-5
        assert all(0 <= off < allowed for off in row["max_error"].values())
        assert {"forward", "grad_x", "grad_values", "dense_forward"} <= set(row["times"])


@pytest.mark.slow
def test_a_decoder_is_trained_on_a_manual_and_pruned(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'openwork[hf]'")
    for file in BENCH.glob("*.py"):
        shutil.copy(file, tmp_path)
    pages = tmp_path / "pages"
    pages.mkdir()
    for i in range(41):  # three files are held out, two of them as unseen
        (pages / f"{i:02}.rst.txt").write_text(f"Page {i}\n\n" + "The iterator gives one item after another. " * 300)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for line in (
        ["manual.py", "--out", "decoder", "--manual", "pages", "--steps", "12"],
        ["llm_stories.py", "--quick", "--manual", "decoder"],
    ):
        run = subprocess.run([sys.executable, *line], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    told = json.loads((tmp_path / "decoder" / "training.json").read_text())
    assert told["path"][-1]["step"] == 12
    rows = json.loads((tmp_path / "results" / "llm_manual_quick.json").read_text())["rows"]
    assert [r["method"] for r in rows] == ["dense", "magnitude", "wanda", "sparsegpt"]
    assert all(r["validation"]["mean"] > 1 for r in rows)


def test_quick_break_even(tmp_path):
    found = quick("break_even", tmp_path)
    assert len(found["rows"]) == 4
    for row in found["rows"]:
        pairs = list(zip(row["sparsities"], row["ratios"], strict=True))
        slower = [s for s, r in pairs if r < 1]
        if pairs[-1][1] < 1:
            assert row["from"] is None
        else:
            assert max(slower, default=0.0) <= row["from"] <= min(s for s, _ in pairs if s > max(slower, default=-1))


def test_quick_kernels(tmp_path):
    found = quick("kernels", tmp_path)
    assert {r["pattern"] for r in found["rows"]} >= {"32x32", "unstructured"}
    for row in found["rows"]:
        assert row["error"] < (0.02 if "times int8" in row["case"] else 1e-5), row
        assert row["ms"] > 0
        assert row["torch_ms"] > 0


def test_quick_sharded_topk(tmp_path):
    (row,) = quick("sharded_topk", tmp_path)["rows"]
    assert row["equal"] == "True"
    assert row["bytes"] < 100_000


def test_quick_small_cnn(tmp_path):
    rows = quick("small_cnn", tmp_path)["rows"]
    assert {r["part"] for r in rows} == {"blocks", "phases", "thresholds", "probabilities"}
    first = [r["mean"] for r in rows if r["what"] == "density of the first layer"]
    assert len(first) == 5 * 4  # methods, settings
    assert set(first) == {1.0}  # too few blocks


def test_quick_mechanisms(tmp_path):
    found = quick("mechanisms", tmp_path)
    assert {r["part"] for r in found["rows"]} == {
        "acdc", "powers", "gradients", "thresholds", "probabilities", "tickets", "removal"
    }  # fmt: skip
    assert all(len(r["values"]) == 1 for r in found["rows"])


@pytest.mark.parametrize("name", ["soups_digits", "llm_speed"])
def test_quick_bench_of_pieces(name, tmp_path):
    rows = quick(name, tmp_path)["rows"]
    assert all(r["after"]["mean"] > 0 for r in rows)
    if name == "llm_speed":
        assert {r["method"] for r in rows} == {"sparsegpt", "wanda"}
        for row in rows:
            assert row["equal_masks"] > 0.999
            assert row["error"] == pytest.approx(row["plain_error"], rel=1e-4)
    else:
        soup = next(r for r in rows if r["method"] == "soup")
        assert soup["merges"] == 3
        assert next(r for r in rows if r["method"].startswith("average"))["support"]["mean"] > 0.052


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llm_icbs", "stun_moe", "llm_scale", "llm_packed", "llm_peer"])
def test_quick_bench_of_language_models(name, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'openwork[hf]'")
    if name not in ("llm_scale", "llm_packed", "llm_peer") and assets_folder() is None:
        pytest.skip("no asset folder: set OPENWORK_ASSETS to the folder with stories260K.bin and tinyshakespeare.txt")
    rows = quick(name, tmp_path)["rows"]
    if name == "llm_icbs":
        found = {r["method"]: r["after"]["mean"] for r in rows if r["setting"] == "stories260K"}
        assert found["icbs from magnitude, 4 steps"] > found["icbs from magnitude, 0 steps"]
    elif name == "stun_moe":
        assert len({(r["density"], r["method"]) for r in rows}) == len(rows) == 17
    elif name == "llm_packed":
        timed = [r for r in rows if r["setting"] != "stories260K"]
        assert len(timed) == 6
        assert all(r["fresh_process_equal"] and r["error"] < 1e-4 and r["bytes"] < r["dense_bytes"] for r in timed)
        assert all(r["perplexity"]["pruned"] == pytest.approx(r["perplexity"]["packed"], rel=1e-3)
                   for r in rows if r["setting"] == "stories260K")  # fmt: skip
    else:
        assert rows[0]["density"] == 0.5
        assert rows[0]["resident_bytes"] < 2e9


@pytest.mark.slow
def test_quick_encoders(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'openwork[hf]'")
    found = quick("llm_encoders", tmp_path)
    if len(found["skipped"]) == 2:
        pytest.skip("; ".join(found["skipped"].values()))
    for setting, key in (("MiniLM", "cosine"), ("Whisper", "agrees")):
        if rows := [r for r in found["rows"] if r["setting"] == setting]:
            assert [r["method"] for r in rows] == ["dense", "wanda"]
            assert rows[0][key]["mean"] == pytest.approx(1)
            assert 0.5 < rows[1][key]["mean"] < 0.999
            assert rows[0]["found"]["mean"] > 0.7
            assert rows[1]["realised"]["mean"] == 0.5


@pytest.mark.slow
def test_quick_harness(tmp_path):
    found = {r["what"]: r["value"] for r in quick("harness", tmp_path)["rows"]}
    assert found["records lost or written twice"] == 0
    assert found["results equal to those of an undisturbed run (1 = all)"] == 1
    assert found["runs of the suite that was killed"] == 5


@pytest.mark.slow
def test_quick_report_page(tmp_path):
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no Chromium on this machine")
    found = {r["what"]: r["value"] for r in quick("report_page", tmp_path)["rows"]}
    assert found["runs"] == 52
    assert 50_000 < found["bytes of the page"] < 1_000_000
    assert found["and the fastest"] > 0


def test_quick_fuzz(tmp_path):
    found = quick("fuzz", tmp_path)
    assert sum(r["inputs"] for r in found["rows"]) == 1_100
    for row in found["rows"]:
        assert not row["wrong"], row["first"]
        assert row["refused"] + row["read"] == row["inputs"]


def test_quick_many_machines(tmp_path):
    found = quick("many_machines", tmp_path)
    assert len(found["rows"]) == 3
    assert all(r["megabytes"] < 0.1 * r["gathering"] for r in found["rows"])
