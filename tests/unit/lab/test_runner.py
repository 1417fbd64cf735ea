"""Jobs: metrics, equal budgets, and stopping at any step."""

import math
from dataclasses import replace

import pytest
import torch

from openwork.core.recipe import Recipe
from openwork.data import load_data
from openwork.errors import DivergedError, FileError, RecipeError
from openwork.lab import Budget, Job, Runner
from openwork.lab import runner as module
from openwork.lab.budget import default_budget
from openwork.lab.precision import channels_last, computing_in
from openwork.methods import magnitude, probmask
from openwork.structure import Block

SMALL = Budget(epochs=1, finetune_epochs=1, batch_size=64)
JOBS = {
    "prune": Job("mlp", "digits", "spode", 0.1, options={"steps": 5}, budget=SMALL),
    "attach": Job("mlp", "digits", "sequential_attention_pp", 0.25, Block(8, 8), budget=Budget(4, 1, 64)),
    "drop and grow": Job("mlp", "digits", "rigl", 0.1, options={"every": 5}, budget=SMALL),
    "rounds": Job("mlp", "digits", "imp", 0.5, budget=SMALL),
    "at init": Job("mlp", "digits", "synflow", 0.1, options={"rounds": 5}, budget=SMALL, at="init"),
}


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def finish(job, data, work=None, resume=False, stop_after=None):
    count = [0]

    def watch(*_):
        count[0] += 1
        if stop_after is not None and count[0] > stop_after:
            raise Stop

    return Runner(job, work, data=data, watch=watch, save_every=0.0).run(resume=resume), count[0]


@pytest.mark.parametrize("name", JOBS)
def test_stopping_and_resuming_changes_nothing(name, digits, tmp_path):
    (model, result), total = finish(JOBS[name], digits)
    for i, stop in enumerate({1, total // 3, total // 2 + 1, total - 1}):
        work = tmp_path / str(i)
        work.mkdir()
        with pytest.raises(Stop):
            finish(JOBS[name], digits, work, stop_after=stop)
        (again, other), _ = finish(JOBS[name], digits, work, resume=True)
        for (n, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), n
        assert all(torch.equal(other.masks[n], m) for n, m in result.masks.items())
        assert other.metrics == result.metrics
        assert other.log == result.log
        assert other.curve == result.curve


def test_metrics_tell_every_stage(digits):
    (_, result), steps = finish(JOBS["prune"], digits)
    assert list(result.metrics) == ["dense", "pruned", "finetuned"]
    assert steps == 2 * -(-len(digits.x_train) // 64)
    assert result.manifest["data_fingerprint"] == digits.fingerprint()
    assert result.manifest["seed"] == 0


def test_every_drive_gets_the_same_number_of_steps(digits):
    steps = {
        name: finish(Job("mlp", "digits", m, 0.5, budget=Budget(3, 1, 64)), digits)[1]
        for name, m in (("prune", "magnitude"), ("attach", "acdc"))
    }
    assert len(set(steps.values())) == 1


def test_a_recipe_replaces_the_method(digits):
    recipe = Recipe.from_dict(magnitude(density=0.3).to_dict())
    (_, result), _ = finish(Job("mlp", "digits", recipe=recipe, budget=SMALL), digits)
    assert abs(result.density - 0.3) < 1e-3


def test_draws_of_a_mask_are_passes_that_are_averaged_and_counted(digits, monkeypatch):
    seen, one = [], module.cross_entropy

    def keep(*given):
        loss = one(*given)
        seen.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(module, "cross_entropy", keep)
    spent, first = [], []
    for samples in (1, 3):
        seen.clear()
        job = Job("mlp", "digits", "probmask", 0.5, options={"samples": samples}, budget=Budget(2, 1, 64))
        (_, result), steps = finish(job, digits)
        assert len(seen) == samples * steps
        assert len(set(seen[:samples])) == samples
        first.append((result.curve[0]["loss"], sum(seen[:samples]) / samples))
        spent.append(result.manifest["training_macs"])
    assert all(told == pytest.approx(mean) for told, mean in first)
    assert spent[1] == 3 * spent[0]


def test_another_job_cannot_resume(digits, tmp_path):
    with pytest.raises(Stop):
        finish(JOBS["prune"], digits, tmp_path, stop_after=3)
    other = Job("mlp", "digits", "spode", 0.2, options={"steps": 5}, budget=SMALL)
    with pytest.raises(FileError, match="the stopped run was another job"):
        finish(other, digits, tmp_path, resume=True)


def test_a_description_from_before_an_option_is_of_the_same_job():
    recipe = probmask(density=0.3, steps=20)
    job = Job("mlp", "digits", recipe=recipe, budget=SMALL)
    saved = job.describe()
    assert job.described_by(saved)
    assert saved["recipe"]["relaxation"].pop("samples") == 1
    assert job.described_by(saved)
    saved["recipe"]["relaxation"]["samples"] = 2
    assert not job.described_by(saved)
    saved["recipe"]["relaxation"]["kind"] = "Unknown"
    assert not job.described_by(saved)
    assert not job.described_by(None)


def test_a_corrupt_checkpoint_is_refused(digits, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"junk")
    with pytest.raises(FileError, match="corrupt or truncated checkpoint"):
        finish(JOBS["prune"], digits, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "spode", "options": {"radios": 1.2}}, "spode has no option 'radios'; did you mean 'radius'"),
        ({"method": "spod"}, "unknown method 'spod'; did you mean 'spode'"),
        ({"at": "later"}, "at must be 'pretrained' or 'init', got 'later'"),
        ({"density": 50}, "density must be a kept share in .0, 1., got 50; 50 % is 0.5"),
        ({"seed": 10**20}, "seed must be a whole number of at most 2..62 in size, got 1000"),
        ({"seed": 0.5}, "seed must be a whole number of at most 2..62 in size, got 0.5"),
    ],
)
def test_bad_jobs_are_refused(options, message, digits):
    with pytest.raises(RecipeError, match=message):
        Runner(Job("mlp", "digits", budget=SMALL, **options), data=digits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "needs epochs > 0 and finetune_epochs >= 0, both at most 1000000, got 0"),
        ({"epochs": 1e300}, r"both at most 1000000, got 1e\+300"),
        ({"epochs": math.nan}, "Budget: epochs must be a finite number, got nan"),
        ({"epochs": math.inf}, "Budget: epochs must be a finite number, got inf"),
        ({"epochs": True}, "Budget: epochs must be a finite number, got True"),
        ({"finetune_lr": "0.1"}, "Budget: finetune_lr must be a finite number, got '0.1'"),
        ({"weight_decay": math.nan}, "Budget: weight_decay must be a finite number, got nan"),
        ({"weight_decay": -1.0}, r"momentum must be in \[0, 1\) and weight_decay at least 0, got 0.9 and -1.0"),
        ({"momentum": -1.0}, r"momentum must be in \[0, 1\) and weight_decay at least 0, got -1.0 and"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\) and weight_decay at least 0, got 1.0 and"),
        ({"batch_size": 2.5}, "Budget: batch_size must be a whole number up to 2147483647, got 2.5"),
        ({"batch_size": 2**31}, "Budget: batch_size must be a whole number up to 2147483647, got 2147483648"),
        ({"lr": -1.0}, "batch_size, lr and finetune_lr must be positive"),
        ({"optimizer": "lion"}, "optimizer must be 'sgd' or 'adamw', got 'lion'"),
        ({"precision": "float16"}, "unknown precision 'float16'; did you mean 'bfloat16'"),
        ({"warmup": 1.5}, "warmup and rewind must be shares in .0, 1."),
        ({"accumulate": 0}, "accumulate must be a whole number from 1 on that divides batch_size 128, got 0"),
        ({"accumulate": 2.0}, "accumulate must be a whole number from 1 on that divides batch_size 128, got 2.0"),
        ({"accumulate": 3}, "accumulate must be a whole number from 1 on that divides batch_size 128, got 3"),
        ({"accumulate": True}, "Budget: accumulate must be a finite number, got True"),
        (
            {"schedule": "linear"},
            "Budget: unknown schedule 'linear'; did you mean 'cosine'. known: constant, cosine, exponential",
        ),
        ({"schedule": "exponential"}, "an exponential never reaches 0; give final_lr, such as a hundredth of lr"),
        ({"schedule": "constant", "final_lr": 0.01}, "a constant schedule has no final_lr, got 0.01; leave it out"),
        ({"final_lr": -0.1}, "final_lr must be at least 0 and at most the peak that it falls from, 0.02, got -0.1"),
        ({"final_lr": 0.03}, "final_lr must be at least 0 and at most the peak that it falls from, 0.02, got 0.03"),
        ({"final_lr": 0.1, "finetune_epochs": 0}, "at most the peak that it falls from, 0.05, got 0.1"),
    ],
)
def test_bad_budgets_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Budget(**options)


@pytest.mark.parametrize(
    ("method", "options", "dtypes"),
    [("magnitude", {}, {torch.bfloat16}), ("spode", {"steps": 5}, {torch.bfloat16, torch.float32})],
)
def test_bfloat16_is_for_training_and_measuring_and_not_for_scores(method, options, dtypes, digits):
    job = Job("mlp", "digits", method, 0.5, options=options, budget=replace(SMALL, precision="bfloat16"))
    runner, seen = Runner(job, data=digits), set()
    layer = next(m for m in runner.model.modules() if isinstance(m, torch.nn.Linear))

    def look(module, inputs, output):
        if len(output) > 1:  # the multiply-accumulates are counted on one sample
            seen.add((module.training, output.dtype))

    layer.register_forward_hook(look)
    model, result = runner.run()
    assert {(True, torch.bfloat16), (False, torch.bfloat16)} <= seen
    assert {dtype for _, dtype in seen} == dtypes
    assert all(p.dtype == torch.float32 for p in model.parameters())
    exact = Runner(replace(job, budget=SMALL), data=digits).run()[1].metrics
    assert result.metrics["dense"]["loss"] == pytest.approx(exact["dense"]["loss"], rel=1e-3)
    assert result.metrics["dense"] != exact["dense"]
    assert job.describe()["budget"]["precision"] == "bfloat16"
    assert "precision" not in JOBS["prune"].describe()["budget"]  # stopped jobs of before go on


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (2, 3, 4, 6), (2, 3, 1, 1), (1, 1, 1, 1)])
def test_images_are_laid_out_channels_last(shape):
    x = torch.randn(shape)
    laid = channels_last(x)
    assert torch.equal(laid, x)
    _, c, h, w = shape
    assert laid.stride() == (h * w * c, 1, w * c, c)
    for same in (torch.randn(3, 5), torch.ones(shape, dtype=torch.int64)):
        assert channels_last(same) is same


def test_outputs_of_transformers_are_float32_too():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    layer = torch.nn.Linear(3, 2)
    found = computing_in("bfloat16", lambda x: Output(layer(x)))(torch.randn(4, 3))
    assert found.logits.dtype == torch.float32
    assert computing_in("float32", layer) is layer


def test_divergence_names_the_step(digits, monkeypatch):
    calls = [0]

    def bad(output, target):
        calls[0] += 1
        loss = torch.nn.functional.cross_entropy(output, target)
        return loss * float("nan") if calls[0] == 4 else loss

    monkeypatch.setattr(module, "cross_entropy", bad)
    with pytest.raises(DivergedError, match="dense: the loss is nan at step 3; lower the learning rate"):
        finish(JOBS["prune"], digits)


def test_checkpoints_start_a_job(digits, tmp_path):
    from safetensors.torch import save_file

    from openwork.zoo import build_model

    path = tmp_path / "dense.safetensors"
    with pytest.raises(FileError, match="no such checkpoint"):
        Runner(Job("mlp", "digits", density=0.5, budget=SMALL, checkpoint=str(path)), data=digits)
    path.write_bytes(b"junk")
    with pytest.raises(FileError, match="not a readable safetensors file"):
        Runner(Job("mlp", "digits", density=0.5, budget=SMALL, checkpoint=str(path)), data=digits)
    save_file(build_model("mlp", (1, 8, 8), 10, hidden=(5,)).state_dict(), path)
    with pytest.raises(FileError, match="does not fit MLP|does not fit"):
        Runner(Job("mlp", "digits", density=0.5, budget=SMALL, checkpoint=str(path)), data=digits)
    save_file(build_model("mlp", (1, 8, 8), 10).state_dict(), path)
    _, steps = finish(Job("mlp", "digits", density=0.5, budget=SMALL, checkpoint=str(path)), digits)
    assert steps == 23
    with pytest.raises(RecipeError, match="rewinding needs its own dense training"):
        finish(Job("mlp", "digits", "imp", 0.5, budget=SMALL, checkpoint=str(path)), digits)


def test_learning_rate_warms_up_and_ends_at_zero():
    budget = default_budget("digits")
    rates = [budget.rate(s, 100, 1.0) for s in range(100)]
    assert rates[0] == 0.2
    assert max(rates) == 1.0
    assert rates[-1] < 1e-3
    assert rates.index(1.0) == 4


def test_learning_rates_fall_as_the_schedule_says():
    def rates(steps=100, peak=2e-2, **options):
        budget = Budget(lr=2e-2, warmup=0.1, **options)
        return [budget.rate(s, steps, peak) for s in range(steps)]

    falling = rates(schedule="exponential", final_lr=3e-4)
    assert falling[9] == falling[10] == 2e-2
    assert falling[:10] == rates()[:10] == pytest.approx([2e-3 * (s + 1) for s in range(10)])
    shrink = 0.015 ** (1 / 90)
    assert [b / a for a, b in zip(falling[10:], falling[11:], strict=False)] == pytest.approx([shrink] * 89)
    assert falling[-1] * shrink == pytest.approx(3e-4)
    assert rates(schedule="exponential", final_lr=3e-4, peak=1e-2)[-1] * (0.03 ** (1 / 90)) == pytest.approx(3e-4)
    assert rates(schedule="constant")[9:] == [2e-2] * 91
    assert rates(schedule="constant")[:10] == falling[:10]
    bent = rates(final_lr=4e-3)
    assert bent[55] == pytest.approx((2e-2 + 4e-3) / 2)
    assert min(bent[10:]) == bent[-1] == pytest.approx(4e-3, rel=2e-3)


def test_rounds_share_the_fine_tuning_out():
    def rounds(steps=100, count=3, **options):
        return Budget(finetune_epochs=10, finetune_lr=0.01, **options).rounds(steps, count)

    assert rounds() == [(33, 0.01), (33, 0.01), (34, 0.01)]
    assert rounds(round_lr=0.03) == [(33, 0.03), (33, 0.03), (34, 0.01)]
    assert rounds(round_epochs=2, round_lr=0.03) == [(20, 0.03), (20, 0.03), (60, 0.01)]
    assert rounds(round_epochs=20, count=1) == [(100, 0.01)]
    with pytest.raises(
        RecipeError, match="2 rounds of round_epochs 5 leave nothing of the finetune_epochs 10 for the last; give more"
    ):
        rounds(round_epochs=5)
    with pytest.raises(RecipeError, match="leave nothing of the finetune_epochs 0"):
        Budget(finetune_epochs=0, round_epochs=1).rounds(0, 2)
    with pytest.raises(RecipeError, match="round_epochs and round_lr must be at least 0, got -1 and 0"):
        Budget(round_epochs=-1)
    with pytest.raises(RecipeError, match="at most the peak that it falls from, 0.001"):
        Budget(round_lr=0.001, final_lr=0.01)


def test_rounds_train_as_long_as_they_are_told(digits, monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def look(self, *args):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", look)
    budget = Budget(epochs=1, finetune_epochs=5, batch_size=256, round_epochs=1, round_lr=0.04, finetune_lr=0.01)
    job = Job("mlp", "digits", "spode_iterative", 0.2, options={"rounds": 3, "steps": 4}, budget=budget)
    runner = Runner(job, data=digits)
    result = runner.run()[1]
    each = runner.batches.steps_per_epoch
    tuned = seen[-5 * each :]
    assert max(tuned[: 2 * each]) == 0.04
    assert [max(tuned[i * each : (i + 1) * each]) for i in range(2)] == [0.04, 0.04]
    assert max(tuned[2 * each :]) == 0.01
    assert result.density == pytest.approx(0.2, abs=1e-3)


def test_training_follows_the_schedule(digits, monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def look(self, *args):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", look)
    budget = Budget(1, 1, batch_size=64, schedule="exponential", final_lr=1e-3, warmup=0.0)
    finish(Job("mlp", "digits", "magnitude", 0.5, budget=budget), digits)
    half = len(seen) // 2
    assert (seen[0], seen[half]) == (0.05, 0.02)
    assert all(a >= b for part in (seen[:half], seen[half:]) for a, b in zip(part, part[1:], strict=False))
    assert 1e-3 < seen[-1] < seen[half - 1] < 1.3e-3


def test_descriptions_hold_later_options_only_where_they_are_used():
    later = {"precision", "accumulate", "schedule", "final_lr"}
    assert not later & SMALL.plain().keys()
    used = replace(SMALL, precision="bfloat16", accumulate=4, schedule="exponential", final_lr=1e-3)
    assert later <= used.plain().keys()
    assert Budget(**used.plain()) == used


def test_open_ended_options_reach_the_method():
    job = Job("mlp", "digits", "spode", 0.1, options={"radius_path": "search"})
    assert job.build_recipe(10).rule.radius_path == "search"


def test_checkpoints_without_the_counters_of_norms_fit(tmp_path):
    """Older files and other frameworks have no ``num_batches_tracked``."""
    from safetensors.torch import save_file

    from openwork.lab.checkpoint import load_dense
    from openwork.zoo import build_model

    source, model = build_model("resnet8"), build_model("resnet8")
    state = source.state_dict()
    save_file({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.safetensors")
    load_dense(model, tmp_path / "old.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_gates_keep_their_own_learning_rate(digits, monkeypatch, tmp_path):
    """Also after a stop: the rate of a step is that of the weights times the factor of the gates."""
    seen = set()
    step = torch.optim.SGD.step

    def look(self, *args):
        seen.add(round(self.param_groups[-1]["lr"] / self.param_groups[0]["lr"], 6))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", look)
    job = replace(JOBS["attach"], options={"learning_rate": 3.0})
    with pytest.raises(Stop):
        finish(job, digits, tmp_path, stop_after=30)
    finish(job, digits, tmp_path, resume=True)
    assert seen == {3.0}
