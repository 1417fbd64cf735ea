"""A suite becomes cells: one job each, with the cells that must be done before it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from openwork.lab.controls import Small, random_like_global
from openwork.lab.facts import TUNE_SEED, Facts, groups_of, small_names, tail_of
from openwork.lab.job import Job
from openwork.lab.search import Search
from openwork.lab.suite import (
    DENSE,
    EXTRA,
    LONG,
    RANDOM,
    RENEWED,
    SHUFFLED,
    SMALL,
    Setting,
    Suite,
    common,
    job_of,
    starts_trained,
    structure_in,
)
from openwork.methods._common import has_regions
from openwork.structure.words import word_of

ANEW = 10_000  # added to a seed where the weights of that seed would be the ones the method began with
Peak = Literal["lr", "finetune_lr", ""]


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    ``start`` is the key of the dense cell whose weights it begins with, ``tuned`` the keys of the runs on the
    validation split among which the learning rate is chosen, and ``peak`` the field of the budget that holds it.
    """

    key: str
    kind: Literal["dense", "tune", "run"]
    setting: str
    method: str
    role: Literal["method", "control"]
    structure: str
    density: float
    seed: int
    job: Job
    peak: Peak = ""
    lr: float | None = None
    start: str | None = None
    tuned: tuple[str, ...] = ()
    held_out: float = 0.0
    """Share of the training set that is held out and takes the place of the test set."""
    mask_of: str | None = None
    """The key of the run whose mask is taken."""
    keeps_mask: bool = False
    search: Search | None = None
    """A trial: what it tries follows from the trials in ``tuned``."""
    timed: int = 0
    """Batch size at which the final network is timed."""
    chance: float | None = None
    """The accuracy of guessing on the test set, counted once for all cells; None on a validation split."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of all cells that must be done before."""
        return (*((self.start,) if self.start else ()), *self.tuned, *((self.mask_of,) if self.mask_of else ()))

    @property
    def file(self) -> str:
        """A file name for the key: readable, and different for different keys."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", self.key).strip("-")[:80]
        return f"{readable}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class _Line:
    """One method or control at one density in one setting; the seeds come later."""

    method: str
    role: Literal["method", "control"]
    structure: str
    density: float
    job: Job
    pretrained: bool
    peak: Peak
    mask_of: str = ""
    """The method whose mask is taken: a sanity control."""
    tuned_as: tuple[str, float] | None = None
    """The line whose learning rate is taken, where there is no grid of its own."""
    keyed: str = ""
    """What stands in its keys for method and density, where that is something else."""

    @property
    def place(self) -> str:
        """Method and density as its keys hold them."""
        return self.keyed or f"{self.method} | {self.density}"


def cells_of(suite: Suite, facts: Mapping[str, Facts]) -> list[Cell]:
    """Every cell in an order in which each comes after those that it needs."""
    found = [c for setting in suite.settings for c in _setting_cells(suite, setting, facts[setting.name])]
    return [c if c.held_out else replace(c, chance=facts[c.setting].chance) for c in found]


def _setting_cells(suite: Suite, setting: Setting, facts: Facts) -> Iterator[Cell]:
    lines = list(_lines(suite, setting, facts))
    name, at_all = setting.name, any(line.pretrained for line in lines)
    there = {line.method for line in lines if line.density == suite.tune_at}  # all others are tuned where they stand
    places = {(line.method, line.density): line.place for line in lines}
    tuned = [
        line
        for line in lines
        if suite.tuned and line.peak and not line.mask_of and line.density == _tuned_at(suite, there, line)[1]
    ]
    if at_all or "dense" in suite.controls:
        for seed in suite.seeds:
            yield replace(_dense(setting, seed, 0.0), timed=suite.timed)
    if any(line.pretrained for line in tuned) and setting.checkpoint is None:
        yield _dense(setting, TUNE_SEED, suite.validation)
    for line in tuned:
        start = _dense_key(setting, TUNE_SEED, True) if line.pretrained and setting.checkpoint is None else None
        job, keys = replace(line.job, seed=TUNE_SEED), _tune_keys(suite, name, line.place)
        for i, key in enumerate(keys if suite.search else ()):
            cell = _cell(key, "tune", name, line, job, None, start, keys[:i], suite.validation)
            yield replace(cell, search=suite.search)
        for lr, key in zip(suite.lr, keys, strict=False):
            yield _cell(key, "tune", name, line, with_rate(job, line.peak, lr), lr, start, (), suite.validation)
    for line in lines:
        who, density = _tuned_at(suite, there, line)
        place = places.get((who, density), f"{who} | {density}")
        choices = _tune_keys(suite, name, place) if line.peak and who else ()
        for seed in suite.seeds:
            start = _dense_key(setting, seed, False) if line.pretrained and setting.checkpoint is None else None
            key = f"{name} | {line.place} | seed {seed}"
            peak = getattr(line.job.budget, line.peak) if line.peak else None
            cell = _cell(
                key, "run", name, line, replace(line.job, seed=line.job.seed + seed), peak, start, choices, 0.0
            )
            mask = f"{name} | {line.mask_of} | {line.density} | seed {seed}" if line.mask_of else None
            keeps = suite.sanity and line.role == "method"
            yield replace(cell, seed=seed, mask_of=mask, keeps_mask=keeps, timed=suite.timed)


def _tuned_at(suite: Suite, there: Container[str], line: _Line) -> tuple[str, float]:
    """The method and the density whose runs on the validation split choose the learning rate of a line."""
    who, density = line.tuned_as or (line.method, line.density)
    return who, density if suite.tune_at is None or who not in there else suite.tune_at


def _tune_keys(suite: Suite, setting: str, place: str) -> tuple[str, ...]:
    """The keys of the runs on the validation split by which a line is tuned."""
    trials = range(suite.search.trials if suite.search else 0)
    told = [f"trial {i + 1}" for i in trials] or [f"tune lr {lr}" for lr in suite.lr]
    return tuple(f"{setting} | {place} | {t}" for t in told)


def with_rate(job: Job, peak: Peak, lr: float, more: Mapping[str, float] | None = None) -> Job:
    """The job with another learning rate in the stage that is tuned, and ``more`` fields of its budget changed."""
    if not peak:
        return job
    values: dict[str, Any] = {**(more or {}), "lr" if peak == "lr" else "finetune_lr": lr}
    return replace(job, budget=replace(job.budget, **values))


def _cell(
    key: str,
    kind: Literal["tune", "run"],
    setting: str,
    line: _Line,
    job: Job,
    lr: float | None,
    start: str | None,
    tuned: tuple[str, ...],
    held_out: float,
) -> Cell:
    return Cell(
        key,
        kind,
        setting,
        line.method,
        line.role,
        line.structure,
        line.density,
        job.seed,
        job,
        line.peak,
        lr,
        start,
        tuned,
        held_out,
    )


def _dense_key(setting: Setting, seed: int, validation: bool) -> str:
    return f"{setting.name} | {DENSE} | 1 | {'validation, ' if validation else ''}seed {seed}"


def _dense(setting: Setting, seed: int, held_out: float) -> Cell:
    """Dense training as a job that prunes nothing at initialisation, so that nothing is recalibrated.

    Weights that are given are only measured.
    """
    budget = replace(setting.budget, finetune_epochs=0)
    at: Literal["pretrained", "init"] = "pretrained" if setting.checkpoint else "init"
    job = Job(
        **common(setting),
        density=1.0,
        where=setting.where,
        at=at,
        budget=budget,
        seed=seed,
        checkpoint=setting.checkpoint,
    )
    key = _dense_key(setting, seed, held_out > 0)
    return Cell(key, "dense", setting.name, DENSE, "control", "-", 1.0, seed, job, held_out=held_out)


def _lines(suite: Suite, setting: Setting, facts: Facts) -> Iterator[_Line]:
    steps = facts.dense_steps + facts.finetune_steps
    fine: Peak = "finetune_lr" if facts.finetune_steps else ""
    whole = {**common(setting), "budget": setting.budget}
    start = setting.checkpoint
    methods = []
    for density in suite.densities:
        for m in suite.taking_part(setting):
            job = job_of(setting, m, density, 0)
            pretrained = starts_trained(setting, m, density, steps)
            job = replace(job, checkpoint=start if pretrained else None)
            word = word_of(structure_in(setting, m))
            methods.append(_Line(m.name, "method", word, density, job, pretrained, fine if pretrained else "lr"))
    if "extra" in suite.controls:
        if any(line.pretrained for line in methods):
            job = Job(**whole, density=1.0, where=setting.where, checkpoint=start)
            yield _Line(EXTRA, "control", "-", 1.0, job, True, fine)
        if suite.sanity or any(not line.pretrained for line in methods):
            job = Job(**whole, density=1.0, where=setting.where, at="init")
            yield _Line(LONG, "control", "-", 1.0, job, False, "lr")
    for density in suite.densities if "random" in suite.controls else ():
        yield from _random(suite, setting, density, methods, fine)
    if "small" in suite.controls:
        yield from _small(suite, setting, facts)
    yield from methods
    for line in methods if suite.sanity else ():
        yield from _sanity(suite, line, start)


def _sanity(suite: Suite, line: _Line, checkpoint: str | None) -> Iterator[_Line]:
    """A method's mask shuffled inside each layer, and its mask on weights drawn anew.

    The shuffled mask is trained as the method was: from the same dense weights, or from the same initial ones. New
    weights are trained from the start for as many steps as the dense training and the fine-tuning together. Learning
    rates are those that the method found; where it was fine-tuned and its control is not, that of the dense network
    trained as long.
    """
    same = (line.method, line.density)
    job = replace(line.job, method="random", options={}, recipe=None, checkpoint=None, at="init")
    kept = {"role": "control", "mask_of": line.method}
    if line.pretrained:
        moved = replace(job, at="pretrained", checkpoint=checkpoint, shuffled=True)
    else:
        moved = replace(job, shuffled=True)
    yield replace(line, method=line.method + SHUFFLED, job=moved, tuned_as=same, **kept)  # type: ignore[arg-type]
    scratch = same if not line.pretrained else (LONG if "extra" in suite.controls else "", 1.0)
    anew = replace(job, seed=job.seed + ANEW)
    renewed = replace(line, method=line.method + RENEWED, job=anew, tuned_as=scratch, **kept)  # type: ignore[arg-type]
    yield replace(renewed, pretrained=False, peak="lr")


def _random(suite: Suite, setting: Setting, density: float, methods: list[_Line], fine: Peak) -> Iterator[_Line]:
    groups = groups_of(suite, setting)
    whole = {**common(setting), "budget": setting.budget, "density": density, "method": "random"}
    for i, (structure, where) in enumerate(groups):
        tail = tail_of(groups, i)
        here = {**whole, "structure": structure, "where": where}
        mine = [m for m in methods if m.density == density and (m.job.structure, m.job.where) == (structure, where)]
        word, start = word_of(structure), setting.checkpoint
        if any(m.pretrained for m in mine):
            job = Job(**here, options={"scope": "layer"}, checkpoint=start)
            yield _Line(RANDOM[0] + tail, "control", word, density, job, True, fine)
            if not has_regions(structure):
                recipe = random_like_global(density, structure, where)
                job = Job(**here, recipe=recipe, checkpoint=start)
                yield _Line(RANDOM[1] + tail, "control", word, density, job, True, fine)
        if any(not m.pretrained for m in mine):
            scope = "layer" if has_regions(structure) else "erk"
            job = Job(**here, options={"scope": scope}, at="init")
            yield _Line(RANDOM[2].replace("erk", scope) + tail, "control", word, density, job, False, "lr")


def _small(suite: Suite, setting: Setting, facts: Facts) -> Iterator[_Line]:
    """A small dense network for each structure.

    Keys stay what they were as long as jobs do, so that finished comparisons go on: those of the first structure have
    no tail, and only networks of finer widths are marked, or of rates that such a network chose.
    """
    groups, whole = groups_of(suite, setting), {**common(setting), "budget": setting.budget}
    for i, name in enumerate(small_names(suite, setting)):
        word = word_of(groups[i][0]) if len(groups) > 1 else "-"
        chooser = None if suite.tune_at is None else facts.small[name, suite.tune_at]
        for density in suite.densities:
            found = facts.small[name, density]
            if not isinstance(found, str):
                job = Job(**{**whole, "model_options": found.options}, density=1.0, at="init")
                finer = found.finer or (isinstance(chooser, Small) and chooser.finer)
                key = f"{name if i else SMALL} | {density}{', finer widths' if finer else ''}"
                yield _Line(name, "control", word, density, job, False, "lr", keyed=key)


def weights_file(folder: Path, cell: Cell) -> Path:
    """Where a dense cell leaves its weights."""
    return folder / "dense" / f"{cell.file}.safetensors"


def mask_file(folder: Path, cell: Cell) -> Path:
    """Where a cell whose mask is needed leaves it."""
    return folder / "masks" / f"{cell.file}.safetensors"
