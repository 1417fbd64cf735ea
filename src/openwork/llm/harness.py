"""Tasks of EleutherAI's lm-evaluation-harness on a folder: dense, pruned or packed. Extra ``lm-eval``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openwork.errors import DataError, FileError, RecipeError
from openwork.llm.calibration import load_tokenizer
from openwork.llm.evaluation import load_model, refuse_encoder


def evaluate_tasks(
    folder: str | Path,
    tasks: Sequence[str],
    *,
    include: str | Path | None = None,
    tokenizer: str | Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch: int = 8,
) -> dict[str, Any]:
    """Run tasks of the harness on a language model.

    The model and its tokenizer never come from the network. The data of a task is the harness's affair: it downloads
    what it knows by name, unless that is in the local cache (``HF_HUB_OFFLINE=1`` forbids it); tasks of your own
    (``include``) may read local files. The harness sets the seeds of random, NumPy and torch.

    Args:
        folder: a Hugging Face folder, a result of ``prune_blockwise``, or a packed model of ``openwork export``.
        tasks: names the harness knows, or those of ``include``.
        include: a folder with further task files (YAML).
        tokenizer: a folder that holds one; default: the model's.
        shots: examples in front of every question; None: what the task says.
        limit: questions per task; None: all.
        batch: questions at once.

    Returns:
        ``{"model", "tasks": {task: {metric: value}}, "samples": {task: questions asked}, "shots", "limit",
        "lm_eval": version}``. A metric behind a filter is called ``"metric,filter"``. Standard errors are left out.

    Raises:
        RecipeError: the harness is not installed, or a number is out of range.
        DataError: a task that is not known, or whose data cannot be had; a model that predicts no next token.
        FileError: no folder of tasks, or a model that cannot be loaded.
    """
    if (
        isinstance(tasks, str)
        or not tasks
        or batch < 1
        or (limit is not None and limit < 1)
        or (shots is not None and shots < 0)
    ):
        raise RecipeError(
            "evaluate_tasks needs a list of tasks, batch and limit of at least 1, and shots of at least 0, got "
            f"{tasks!r}, {batch}, {limit} and {shots}"
        )
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as problem:
        raise RecipeError(
            f"evaluate_tasks needs lm-evaluation-harness ({problem}); install it: pip install 'openwork[lm-eval]'"
        ) from None
    if include is not None and not Path(include).is_dir():
        raise FileError(f"{include}: include must be a folder with task files (YAML)")
    refuse_encoder(folder)
    manager = TaskManager(include_path=str(include), include_defaults=False) if include is not None else None
    if manager is None or not set(tasks) <= set(manager.all_tasks):  # the harness's own index takes it many seconds
        manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [t for t in tasks if t not in manager.all_tasks]
    if unknown:
        raise DataError(f"lm-evaluation-harness knows no task {unknown[0]!r}; {len(manager.all_tasks):,} are known")
    speller: Any = load_tokenizer(tokenizer or folder)
    model: Any = load_model(folder)
    try:
        found: Any = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=speller, batch_size=batch), tasks=list(tasks), task_manager=manager,
            num_fewshot=shots, limit=limit, log_samples=False, bootstrap_iters=0,
        )  # fmt: skip
    except (OSError, ValueError) as problem:
        first = (str(problem).splitlines() or ["?"])[0]
        raise DataError(f"{', '.join(tasks)}: could not be run, its data may not be here ({first})") from None
    return {
        "model": str(folder),
        "tasks": {task: _numbers(values) for task, values in found["results"].items()},
        "samples": {task: n["effective"] for task, n in found["n-samples"].items()},
        "shots": shots,
        "limit": limit,
        "lm_eval": lm_eval.__version__,
    }


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """``{"acc,none": 0.5, "alias": ...}`` -> ``{"acc": 0.5}``; names keep their filter where it is not ``none``."""
    metrics = {k: v for k, v in values.items() if "," in k and "_stderr" not in k and isinstance(v, int | float)}
    return {k.removesuffix(",none"): float(v) for k, v in metrics.items()}
