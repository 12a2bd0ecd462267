"""One run to its end, with all that goes with it: tracking while it runs, files when it is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ratchet.core.errors import Cancelled
from ratchet.core.problem import content_hash
from ratchet.core.result import OptimizationResult
from ratchet.engine.certificate import load_or_make_key
from ratchet.prepare import identities
from ratchet.publish import publish
from ratchet.run import Run
from ratchet.settings import Settings
from ratchet.tracking import PATIENCE_SECONDS, Tracker

LAST_WORD_SECONDS = 5.0
"""How long a run that was stopped or failed waits for MLflow to hear of it."""


def carry_out(
    run: Run, folder: Path | None, *, settings: Settings, warn: Callable[[str], None], rebuildable: bool = True
) -> tuple[OptimizationResult, tuple[Path, ...]]:
    """The result, and the files written for it.

    Args:
        run: What to do.
        folder: Where the files go; None writes none.
        settings: Says whether and where MLflow listens.
        warn: Told when MLflow does not work; that never stops the run.
        rebuildable: See ``ratchet.publish.publish``.

    Raises:
        RatchetError: it failed, or was stopped.
    """
    tracker = _tracker(run, settings, warn) if settings.mlflow else None
    result: OptimizationResult | None = None
    status = "failed"
    try:
        result = run.execute()
        status = result.status
        files: tuple[Path, ...] = ()
        if folder is not None:
            key = load_or_make_key(settings.home)
            files = publish(run, result, folder, key=key, rebuildable=rebuildable)
        return result, files
    except (Cancelled, KeyboardInterrupt):
        status = "cancelled"
        raise
    finally:
        if tracker is not None:
            texts = folder if result is not None and settings.texts_in_mlflow else None
            patience = PATIENCE_SECONDS if result is not None else LAST_WORD_SECONDS
            with run.resting():
                tracker.finish(result, texts, status, wait_seconds=patience)


def _name(target: str) -> str:
    """What a target is called where no text of a program belongs: one that was saved holds prompts and demos."""
    return f"a saved program, {content_hash(target)}" if target.lstrip().startswith("{") else target


def _tracker(run: Run, settings: Settings, warn: Callable[[str], None]) -> Tracker:
    options, known = run.prepared.options, identities(run.prepared)
    names = ("target", "metric", "seed", "max_calls", "max_usd", "max_minutes", "min_improvement", "success_at")
    params = {name: getattr(options, name) for name in names} | {
        "target": _name(options.target),
        "metric": known["metric"],
        "algorithms": ",".join(run.prepared.request.algorithms),
        "examples": {name: len(rows) for name, rows in run.notebook.examples().items()},
    }
    tags = {f"ratchet.{name}": known[name] for name in ("program", "task_lm", "reflection_lm", "judge_lm")}
    tags |= {f"ratchet.data.{name}": digest for name, digest in known["data"].items()}
    tracker = Tracker(settings.mlflow_tracking_uri, warn=warn)
    tracker.start(run.id, params, tags)
    run.listen(tracker.on_event)
    return tracker
