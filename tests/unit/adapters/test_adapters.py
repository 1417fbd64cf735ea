"""Recipes inside transformers.Trainer, Lightning and Accelerate: the masks of the plain loop, also after a kill."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.adapters import join_trainer, lightning_callback
from openwork.errors import DensityMissed, FileError, OpenworkError, RecipeError
from openwork.methods import acdc, gradual_magnitude, imp, magnitude, powerpropagation, rigl, sequential_attention_pp

STEPS = 60
BLOCKS = ow.Block(4, 4)
RECIPES = {
    "gradual": lambda: gradual_magnitude(density=0.3, begin=2, end=16, every=2),
    "rigl": lambda: rigl(density=0.3, steps=STEPS, every=4),
    "acdc": lambda: acdc(density=0.3, steps=STEPS),
    "attention": lambda: sequential_attention_pp(
        density=0.3, structure=BLOCKS, where=ow.Select(min_units=4), steps=STEPS
    ),
    "power": lambda: powerpropagation(density=0.3, steps=STEPS),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def samples():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(4 * STEPS, 16, generator=rng), torch.randint(0, 8, (4 * STEPS,), generator=rng)


def by_hand(recipe):
    """The plain loop: batches of four in order, SGD with momentum."""
    model, (x, y) = net(), samples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = ow.attach(model, recipe, optimizer)
    for step in range(STEPS):
        at = 4 * step
        loss = F.cross_entropy(model(x[at : at + 4]), y[at : at + 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    run.finish()
    return model


def same(one, other):
    return all(torch.equal(a, other.state_dict()[k]) for k, a in one.state_dict().items())


# transformers -----------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A model as Trainer wants it."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, labels):
        return {"loss": F.cross_entropy(self.net(x), labels)}


def trainer(folder, stop_at=None, **options):
    transformers = pytest.importorskip("transformers", reason="pip install 'openwork[hf]'")
    pytest.importorskip("accelerate", reason="pip install 'openwork[hf]'")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    x, y = samples()
    model = Wrapped()
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        save_steps=5,
        save_strategy="steps",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        logging_strategy="no",
        dataloader_pin_memory=False,
        **options,
    )

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args, **kwargs):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Killed(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == stop_at:
                raise KeyboardInterrupt

    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    optimizer = (torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), None)
    return InOrder(model, args, train_dataset=rows, optimizers=optimizer, callbacks=[Killed()] if stop_at else [])


@pytest.mark.parametrize("name", RECIPES)
def test_trainer_ends_like_the_plain_loop(name, tmp_path):
    plain = by_hand(RECIPES[name]())
    whole = trainer(tmp_path / "whole")
    ours = join_trainer(whole, RECIPES[name]())
    whole.train()
    assert same(plain, whole.model.net)
    assert ours.result.density == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_trainer_goes_on_bit_for_bit(name, tmp_path):
    plain = by_hand(RECIPES[name]())
    killed = trainer(tmp_path, stop_at=13)
    join_trainer(killed, RECIPES[name]())
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    again = trainer(tmp_path)
    join_trainer(again, RECIPES[name]())
    again.train(resume_from_checkpoint=True)
    assert same(plain, again.model.net)


def test_trainer_refusals(tmp_path):
    best = trainer(
        tmp_path / "a",
    )
    best.args.load_best_model_at_end = True
    with pytest.raises(OpenworkError, match="join_trainer: load_best_model_at_end puts back weights from before"):
        join_trainer(best, RECIPES["gradual"]())
    with pytest.raises(RecipeError, match="join_trainer: imp does not act while a model trains; use ow.cycle"):
        join_trainer(trainer(tmp_path / "b"), imp(density=0.3))
    with pytest.raises(RecipeError, match="join_trainer: magnitude does not act while a model trains; use ow.prune"):
        join_trainer(trainer(tmp_path / "b"), magnitude(density=0.3))
    sharded = trainer(tmp_path / "c")
    sharded.is_fsdp_enabled = True
    with pytest.raises(OpenworkError, match="join_trainer: works on whole weights, but this Trainer shards them"):
        join_trainer(sharded, RECIPES["gradual"]())
    late = trainer(tmp_path / "d")
    ours = join_trainer(late, gradual_magnitude(density=0.3, begin=2, end=STEPS + 6, every=2))
    with pytest.raises(
        OpenworkError, match="join_trainer: gradual_magnitude is attached when the training begins; start"
    ):
        ours.run  # noqa: B018
    with pytest.raises(OpenworkError, match="join_trainer: no result yet; it is there when the training has ended"):
        ours.result  # noqa: B018
    with pytest.raises(DensityMissed, match="finish\\(\\) after 60 optimiser steps"):
        late.train()
    with pytest.raises(OpenworkError, match="join_trainer: gradual_magnitude has trained already; make a new one"):
        late.train()


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    killed = trainer(tmp_path, stop_at=7)
    join_trainer(killed, RECIPES["attention"]())
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    again = trainer(tmp_path)
    join_trainer(again, RECIPES["gradual"]())
    with pytest.raises(
        RecipeError, match="gradual_magnitude: the saved state belongs to another recipe; use the same one"
    ):
        again.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-5" / "openwork-run.safetensors").unlink()
    again = trainer(tmp_path)
    join_trainer(again, RECIPES["attention"]())
    with pytest.raises(FileError, match="openwork-run.safetensors: no such checkpoint"):
        again.train(resume_from_checkpoint=True)


def test_missing_packages_are_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("transformers", "lightning"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OpenworkError, match="join_trainer needs transformers; pip install 'openwork\\[hf\\]'"):
        join_trainer(None, RECIPES["gradual"]())
    with pytest.raises(
        OpenworkError, match="lightning_callback needs lightning; pip install 'openwork\\[lightning\\]'"
    ):
        lightning_callback(RECIPES["gradual"]())


# Accelerate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_accelerate_ends_like_the_plain_loop(name, tmp_path):
    """Attach before prepare; ``register_for_checkpointing`` takes the run."""
    accelerate = pytest.importorskip("accelerate", reason="pip install 'openwork[hf]'")
    plain = by_hand(RECIPES[name]())
    accelerator = accelerate.Accelerator(cpu=True)
    x, y = samples()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = ow.attach(model, RECIPES[name](), optimizer)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(run)
    for step in range(STEPS):
        if step == 9:
            accelerator.save_state(str(tmp_path / "state"))
        if step == 14:  # as after a kill: five steps are lost and repeated
            accelerator.load_state(str(tmp_path / "state"), load_kwargs={"weights_only": False})
            for again in range(9, 14):
                train_step(accelerator, prepared, wrapped, x, y, again)
        train_step(accelerator, prepared, wrapped, x, y, step)
    run.finish()
    assert same(plain, model)


def train_step(accelerator, model, optimizer, x, y, step):
    loss = F.cross_entropy(model(x[4 * step : 4 * step + 4]), y[4 * step : 4 * step + 4])
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()


# Lightning --------------------------------------------------------------------------------------------


def lightning_parts(folder, callbacks, steps=STEPS, **options):
    lightning = pytest.importorskip("lightning.pytorch", reason="pip install 'openwork[lightning]'")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    x, y = samples()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, index):
            at = 4 * self.global_step  # where its loader goes on after a resume is Lightning's matter
            return F.cross_entropy(self.net(x[at : at + 4]), y[at : at + 4])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    fit = lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=callbacks,
        **options,
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    return lightning, fit, Module(), data


@pytest.mark.filterwarnings("ignore")  # Lightning warns about workers, loggers and pickle
@pytest.mark.parametrize("name", RECIPES)
def test_lightning_ends_like_the_plain_loop_also_after_a_kill(name, tmp_path):
    plain = by_hand(RECIPES[name]())
    sparsity = lightning_callback(RECIPES[name]())
    lightning, fit, module, data = lightning_parts(tmp_path, [sparsity], enable_checkpointing=False)
    fit.fit(module, data)
    assert same(plain, module.net)
    assert sparsity.result.density == pytest.approx(0.3, abs=0.03)

    class Killed(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 23:
                trainer.save_checkpoint(tmp_path / "23.ckpt")
            if trainer.global_step == 31:
                raise RuntimeError("killed")

    _, fit, module, data = lightning_parts(
        tmp_path, [lightning_callback(RECIPES[name]()), Killed()], enable_checkpointing=False
    )
    with pytest.raises(RuntimeError, match="killed"):
        fit.fit(module, data)
    _, fit, module, data = lightning_parts(tmp_path, [lightning_callback(RECIPES[name]())], enable_checkpointing=False)
    fit.fit(module, data, ckpt_path=str(tmp_path / "23.ckpt"), weights_only=False)
    assert same(plain, module.net)


@pytest.mark.filterwarnings("ignore")
def test_lightning_refusals(tmp_path):
    ours = lightning_callback(RECIPES["attention"]())
    _, fit, module, data = lightning_parts(tmp_path, [ours], enable_checkpointing=False)

    class Stand:
        optimizers, strategy, world_size = [1, 2], object(), 1

    with pytest.raises(OpenworkError, match="lightning_callback: works with one optimiser, but the module has 2"):
        ours.on_fit_start(Stand, module)
    Stand.optimizers, Stand.strategy = [1], type("FSDPStrategy", (), {})()
    with pytest.raises(
        OpenworkError, match="lightning_callback: works on whole weights, but this strategy shards them"
    ):
        ours.on_fit_start(Stand, module)
    Stand.strategy, Stand.world_size = object(), 2
    with pytest.raises(OpenworkError, match="adds gates after Lightning has wrapped the module, so several processes"):
        ours.on_fit_start(Stand, module)
    short = lightning_callback(gradual_magnitude(density=0.3, begin=2, end=STEPS + 6, every=2))
    _, fit, module, data = lightning_parts(tmp_path, [short], enable_checkpointing=False)
    with pytest.raises(DensityMissed, match="finish\\(\\) after 60 optimiser steps"):
        fit.fit(module, data)
