"""Runs lm-eval with one of our models on our tasks, and keeps what it found."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medbench.catalog import Catalog
from medbench.data.load import locate_or_fetch
from medbench.errors import RequestError, WorkError

if TYPE_CHECKING:
    from medbench.harness.model import MedbenchLM


def configs(
    names: Sequence[str], data_root: Path | None, likelihood: bool = False, limit: int | None = None
) -> list[dict[str, Any]]:
    """The tasks of a request as lm-eval takes them, their data found.

    Args:
        names: of tasks, groups, wildcards, or paths of cards.
        data_root: where the data lies.
        likelihood: see `medbench.harness.task_config`.
        limit: likewise.

    Raises:
        RequestError: no such task, or no data.
    """
    from medbench.harness.tasks import task_config

    catalog = Catalog()
    found = list(dict.fromkeys(name for pattern in names for name in catalog.task_names(pattern)))
    if not found:
        raise RequestError("no task given; use --tasks, for example --tasks vqa_rad,slake")
    made = [task_config(name, data_root, likelihood, limit, catalog) for name in found]
    for name in found:
        locate_or_fetch(catalog.task(name), data_root or catalog.settings.data_root)
    return made


def evaluate(
    lm: MedbenchLM,
    tasks: list[dict[str, Any]],
    *,
    model_args: str = "",
    limit: int | None = None,
    gen_kwargs: str | None = None,
    use_cache: Path | None = None,
    output_path: Path | None = None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """lm-eval's results of a model on tasks.

    Args:
        lm: the model.
        tasks: from `configs`.
        model_args: as the model was asked for, for the results.
        limit: items a task, the first ones; for a task asked by likelihood it should be given to `configs`, too.
        gen_kwargs: lm-eval's `key=value,...` over each task's generation settings.
        use_cache: an answer cache is kept beside this path, a file a model: its name ends in the model's identity.
        output_path: lm-eval's results file is written there: into a folder, or beside a name that ends in .json.
        log_samples: also write what was asked and answered, a file a task.

    Returns:
        As `lm_eval.simple_evaluate`, without samples and with plain JSON values (None for what is undefined); `config`
        holds the model's identity.

    Raises:
        WorkError: the results cannot be written.
        MedbenchError: as the model's.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    about = lm.served.about
    tracker = EvaluationTracker(output_path=str(output_path)) if output_path else None
    results: dict[str, Any] = simple_evaluate(
        model=lm,
        model_args=model_args,
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),
        limit=limit,
        gen_kwargs=gen_kwargs,
        use_cache=f"{use_cache}_{about['identity'][:16]}" if use_cache else None,
        evaluation_tracker=tracker,
        log_samples=log_samples,
        batch_size=about["batch_size"],
        device=str(lm.device),
    )
    samples = results.pop("samples", {})
    results["config"]["model"] = "medbench"
    clean: dict[str, Any] = plain(results)
    if tracker is not None and output_path is not None:
        _name(tracker, about)
        _save(tracker, output_path, dict(clean), samples)
    return clean


def plain(value: Any) -> Any:
    """Values as JSON has them: what is no number is None, what lm-eval leaves as an object becomes its text."""
    from lm_eval.utils import handle_non_serializable

    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return json.loads(json.dumps(handle_non_serializable(value)))


def _name(tracker: Any, about: dict[str, Any]) -> None:
    """Names the model in lm-eval's files; it would draw a name at random, as it knows only its own arguments."""
    from lm_eval.utils import sanitize_model_name

    names = tracker.general_config_tracker
    names.model_source = "medbench"
    names.model_name = f"{about['backbone']}-{about['method']}-{about['identity'][:12]}"
    names.model_name_sanitized = sanitize_model_name(names.model_name)


def _save(tracker: Any, output_path: Path, results: dict[str, Any], samples: dict[str, Any]) -> None:
    """Writes lm-eval's files; it only logs what goes wrong, so they are looked for."""
    single = output_path.suffix == ".json"
    folder = output_path.parent if single else output_path / tracker.general_config_tracker.model_name_sanitized
    tracker.save_results_aggregated(results=results, samples=samples)
    written = [f"{output_path.stem}_{tracker.date_id}.json" if single else f"results_{tracker.date_id}.json"]
    for task, answered in samples.items():
        tracker.save_results_samples(task_name=task, samples=answered)
        written.append(f"samples_{task}_{tracker.date_id}.jsonl")
    missing = [name for name in written if not (folder / name).is_file()]
    if missing:
        raise WorkError(f"lm-eval could not write {folder / missing[0]}")
