"""From the records of all cells to rows, and to the rules of an honest comparison that they keep or break."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import torch

from openwork.lab.controls import NEAR
from openwork.lab.facts import Facts, small_names
from openwork.lab.origin import origin_of
from openwork.lab.required import is_random, is_small, missing_controls, too_small
from openwork.lab.sanity import sanity_of
from openwork.lab.suite import DENSE, EXTRA, LONG, RENEWED, SHUFFLED, Suite
from openwork.version import __version__

FORMAT = "openwork-comparison-1"
MOMENTS = ("pruned", "recalibrated", "finetuned")
SMALL_RULE = "small dense model of as many parameters"
LEAST_DENSITIES, LEAST_SEEDS = 5, 3


def results_of(
    suite: Suite, facts: Mapping[str, Facts], records: Sequence[Mapping[str, Any]], command: str = ""
) -> dict[str, Any]:
    """Everything about a comparison as plain data, in an order that does not depend on how it was run."""
    rows = _rows(suite, facts, records)
    plain = suite.plain()
    rules = rules_of(suite, rows)
    return {
        "format": FORMAT,
        "suite": plain,
        "manifest": {
            "openwork": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            **origin_of(records),
            "command": command,
            "seeds": list(suite.seeds),
            "suite_sha256": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16],
            "data": {name: f.fingerprint for name, f in facts.items()},
        },
        "complete": all(r["met"] for r in rules),
        "rules": rules,
        "settings": [
            {
                "name": s.name,
                "model": s.model,
                "data": s.data,
                "chance": facts[s.name].chance,
                "parameters": facts[s.name].total,
                "targeted": facts[s.name].targeted,
                "steps": [facts[s.name].dense_steps, facts[s.name].finetune_steps],
            }
            for s in suite.settings
        ],
        "missing_controls": missing_controls(suite, rows),
        "sanity": sanity_of(suite, records),
        "rows": rows,
        "cells": sorted(records, key=lambda r: r["key"]),
        "seconds": round(sum(r.get("seconds") or 0.0 for r in records), 1),
    }


def without_times(results: Any) -> Any:
    """The same without its durations: equal for equal runs.

    Examples:
        >>> without_times({"a": [{"seconds": 3, "b": 1}]})
        {'a': [{'b': 1}]}
    """
    if isinstance(results, Mapping):
        return {k: without_times(v) for k, v in results.items() if k not in ("seconds", "milliseconds")}
    return [without_times(v) for v in results] if isinstance(results, list) else results


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, sample standard deviation (None for one value) and the values; None for no values."""
    if not values:
        return None
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": list(values)}


def _rows(suite: Suite, facts: Mapping[str, Facts], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for setting in suite.settings:
        runs = [r for r in records if r["setting"] == setting.name and _counts(r)]
        dense = {r["seed"]: r for r in runs if r["method"] == DENSE}
        groups = dict.fromkeys((r["method"], r["density"]) for r in runs)
        for method, density in groups:
            mine = [r for r in runs if (r["method"], r["density"]) == (method, density)]
            rows.append(_row(suite, mine, dense, facts[setting.name].total))
        if "small" in suite.controls:
            found = facts[setting.name].small
            missing = [(at, why) for at, why in found.items() if isinstance(why, str)]
            rows += [_absent(setting.name, name, density, why) for (name, density), why in missing]
    return rows


def _counts(record: Mapping[str, Any]) -> bool:
    """True for runs on the test set."""
    return record["kind"] == "run" or (record["kind"] == "dense" and "validation" not in record["key"].split(" | ")[-1])


def _row(
    suite: Suite, runs: Sequence[Mapping[str, Any]], dense: Mapping[int, Mapping[str, Any]], total: int
) -> dict[str, Any]:
    first, kept = runs[0], [r for r in runs if r["status"] != "failed"]
    told = {m: [a for r in kept if (a := _accuracy(r, m)) is not None] for m in MOMENTS}
    drops = [
        base - own
        for r in kept
        if (base := _accuracy(dense.get(r["seed"], {}), "finetuned")) is not None
        and (own := _accuracy(r, "finetuned")) is not None
    ]
    counted = [r["counts"] for r in kept if "counts" in r]
    sizes = [r["parameters"] for r in kept if "parameters" in r]
    lr, is_dense = first["lr"], first["method"] == DENSE
    reached: dict[str, Any] | None = None
    if counted:
        reached = {k: mean(c[k] for c in counted) for k in ("targeted", "prunable", "total")}
    if reached is not None:
        told_connected = [
            r["connected"] / r["counts"]["targeted_numel"] for r in kept if r.get("connected") is not None
        ]
        reached["effective"] = mean(told_connected) if told_connected else None
    if reached is not None and is_small(first):  # nothing is pruned: its size against the full model
        reached = {"targeted": None, "effective": None, "prunable": None, "total": mean(sizes) / total}
    return {
        **{k: first[k] for k in ("setting", "method", "role", "structure", "density", "pretrained")},
        "missing": None,
        "seeds": len(runs),
        "collapsed": sum(r["status"] == "collapsed" for r in runs),
        "failed": sum(r["status"] == "failed" for r in runs),
        "errors": sorted({r["error"] for r in runs if r["error"]}),
        "lr": lr,
        "lr_at_edge": not is_dense and lr is not None and _at_edge(suite, lr),
        "reached": reached,
        "parameters": mean(sizes) if sizes else None,
        **{k: _mean(r.get(k) for r in kept) for k in ("macs", "bytes")},
        "training_macs": _mean(_training(r, dense.get(r["seed"], {})) for r in kept),
        "milliseconds": _mean((r.get("milliseconds") or {}).get("dense" if is_dense else "packed") for r in kept),
        **{m: spread(told[m]) for m in MOMENTS},
        "drop": None if is_dense else spread(drops),
        "ece": _mean((r["metrics"].get("finetuned") or {}).get("ece") for r in kept),
        **_top5(kept),
        "seconds": mean(r.get("seconds") or 0.0 for r in runs),
    }


def _training(record: Mapping[str, Any], dense: Mapping[str, Any]) -> float | None:
    """Multiply-accumulates of training and scoring, with those of the dense network that it began with."""
    own = [record.get("training_macs"), record.get("scoring_macs")]
    own += [dense.get("training_macs")] if record["pretrained"] and record["method"] != DENSE else []
    known = [n for n in own if n is not None]
    return float(sum(known)) if len(known) == len(own) else None


def _at_edge(suite: Suite, lr: float) -> bool:
    if suite.search is not None:
        return suite.search.at_edge(lr)
    return len(suite.lr) > 1 and lr in (suite.lr[0], suite.lr[-1])


def _top5(kept: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The spread of top-5 accuracy at the end, where every run has it: not of ten classes, nor of older records."""
    told = [found for r in kept if (found := (r["metrics"].get("finetuned") or {}).get("top5")) is not None]
    return {"top5": spread(told)} if told and len(told) == len(kept) else {}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return mean(known) if known else None


def _absent(setting: str, name: str, density: float, why: str) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("lr", "reached", "parameters", "macs", "training_macs", "bytes", "milliseconds", *MOMENTS, "drop", "ece")
    )
    place = {"setting": setting, "method": name, "role": "control", "structure": "-", "density": density}
    counts = {"pretrained": False, "seeds": 0, "collapsed": 0, "failed": 0, "errors": [], "lr_at_edge": False}
    return {**place, "missing": why, **counts, **empty, "seconds": 0.0}


def _accuracy(record: Mapping[str, Any], moment: str) -> float | None:
    found = (record.get("metrics") or {}).get(moment)
    return None if found is None else float(found["accuracy"])


def rules_of(suite: Suite, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rules of an honest comparison, whether each is kept, and what is missing."""
    names = [s.name for s in suite.settings]
    grid = [(n, d) for n in names for d in suite.densities]

    def have(*methods: str) -> set[tuple[str, float]]:
        return {(r["setting"], r["density"]) for r in rows if r["method"] in methods and r["finetuned"]}

    dense = {r["setting"] for r in rows if r["method"] == DENSE and r["finetuned"]}
    extra = {n for n, _ in have(EXTRA, LONG)}
    random = {(r["setting"], r["density"]) for r in rows if is_random(r) and r["finetuned"]}
    narrow = {s.name: [have(name) for name in small_names(suite, s)] for s in suite.settings}
    no_small = [g for g in grid if not all(g in found for found in narrow[g[0]])]
    why = sorted({r["missing"] for r in rows if r["missing"]})
    pretrained = [r for r in rows if r["role"] == "method" and r["pretrained"] and r["finetuned"]]
    unfinished = sorted({r["setting"] for r in pretrained if not r["pruned"]})
    idle = sorted(s.name for s in suite.settings if s.budget.finetune_epochs <= 0)
    checked = have(*(m.name + tail for m in suite.methods for tail in (SHUFFLED, RENEWED)))
    sane = [_rule("sanity checks: masks shuffled, weights drawn anew", _places(g for g in grid if g not in checked))]
    return [
        _rule("dense control", [n for n in names if n not in dense]),
        _rule("dense control with the extra budget", [n for n in names if n not in extra]),
        _rule("random masks with fair layer shares", _places(g for g in grid if g not in random)),
        small_rule(rows, _places(no_small), "; ".join(why)),
        _count(f"at least {LEAST_DENSITIES} densities", len(suite.densities), LEAST_DENSITIES),
        _count(f"at least {LEAST_SEEDS} seeds", len(suite.seeds), LEAST_SEEDS),
        {
            "rule": "learning rates tuned on a validation split",
            "met": suite.search is not None or len(suite.lr) > 1,
            "detail": "" if suite.search or len(suite.lr) > 1 else "tune.lr lists fewer than two learning rates",
        },
        _rule("accuracy after pruning, recalibration and fine-tuning", unfinished + idle),
        *(sane if suite.sanity else []),
    ]


def _places(cells: Iterable[tuple[str, float]]) -> list[str]:
    return [f"{n} at {d:g}" for n, d in cells]


def _rule(rule: str, missing: Sequence[str], why: str = "") -> dict[str, Any]:
    told = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
    return {"rule": rule, "met": not missing, "detail": f"missing: {told}{f' ({why})' if why else ''}" if told else ""}


def small_rule(rows: Sequence[Mapping[str, Any]], missing: Sequence[str] = (), why: str = "") -> dict[str, Any]:
    """Whether there is a small dense model everywhere, and none has too few parameters to count as one of as many."""
    rule = _rule(SMALL_RULE, missing, why)
    told = [f"{g['setting']} at {g['density']:g}: {g['small']:,.0f} for {g['method']:,.0f}" for g in too_small(rows)]
    if not told:
        return rule
    fewer = f"fewer than {100 * NEAR:g} % of the parameters: {'; '.join(told)}"
    return {**rule, "met": False, "detail": "; ".join(filter(None, [rule["detail"], fewer]))}


def _count(rule: str, found: int, least: int) -> dict[str, Any]:
    return {"rule": rule, "met": found >= least, "detail": "" if found >= least else f"found {found}"}
