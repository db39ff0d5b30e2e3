"""The termination message: the one thing that a container says which outlives it, JSON of at most 4,096 bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from tunery_api.failures import Failure
from tunery_api.findings import CHECK_PENDING, CheckResult
from tunery_api.names import TERMINATION_LIMIT, TERMINATION_PATH
from tunery_api.redact import redact
from tunery_api.runspec import PreflightReport, RunResult, Task

TERMINATION_PATH_ENV: Final = "TUNERY_TERMINATION_PATH"

_SENTENCES: Final = (("checks", "Passed", "message"), ("checks", "Skipped", "message"))
_DROPPED_FIRST: Final = (
    ("resolved", "values", "lora.rank", "reason"),
    ("checks", "Skipped", f"message={CHECK_PENDING}"),
    *_SENTENCES,
    ("evaluations",),
    ("answers", "answeredBy"),
    ("dataset", "ignoredColumns"),
    ("dataset", "firstInvalid"),
    ("resolved", "values", "source=Manifest"),
    ("dataset", "0"),
    ("estimate",),
    ("resolved", "values"),
    ("checks",),
    ("findings", "*", "message"),
    ("resolved", "targetModules"),
    ("inputs",),
    ("memory",),
    ("dataset", "warnings"),
    ("failure", "facts"),
    ("failure", "remedies"),
    ("dataset",),
    ("resolved",),
    ("metrics",),
    ("verification",),
    ("rankTooLow",),
    ("notRemoved",),
    ("checkpoint",),
    ("disk",),
    ("findings",),
    ("rejectedAdapter",),
    ("answers",),
)
"""What a message loses, in this order, until it fits; the reason and the message of a failure, adapter and output stay,
and always fit. Without remedies the usual ones of the reason hold. The sentences
of findings and checks were posted while it ran, what the manifest sets stands in the manifest, and what is not counted
is none: an ordinary preflight keeps its estimate and the values that it chose. What a check that waits for training
says the operator knows."""
_KEPT_LONGER: Final = ("estimate",)
"""Preflight's sentences stay until this is next: nobody has posted them, and after a dry run nobody will. Those of a
stopped run do, too: its pod may not have come to post them."""

_OF_A_LIST: Final = frozenset({"*", *CheckResult})
_MORE_THAN_SET: Final = frozenset({"task", "resumeFrom"})
"""Values of the manifest that stay: a column of kubectl get is read from the one, the other says which step it is."""
_COUNTED: Final = frozenset({"rows", "invalidRows"})
"""Counts of a data set that are told even where they are 0."""


def termination_file() -> Path | None:
    """Return where the message goes: TUNERY_TERMINATION_PATH, else /dev/termination-log; None where there is neither.

    On a laptop nobody waits for one.
    """
    named = os.environ.get(TERMINATION_PATH_ENV)
    target = Path(named or TERMINATION_PATH)
    return target if named or target.exists() else None


def failed_message(
    task: Task, failure: Failure | None, reached: PreflightReport | RunResult | None = None
) -> PreflightReport | RunResult:
    """Return the message of a task that did not come to its end; `reached` is what it has all the same."""
    nothing = PreflightReport() if task is Task.PREFLIGHT else RunResult()
    return (reached or nothing).model_copy(update={"failure": failure})


def clear_termination() -> None:
    """Forget what an earlier process may have written there."""
    target = termination_file()
    if target is not None and target.exists():
        target.write_bytes(b"")


def has_spoken() -> bool:
    """Tell whether a termination message was written."""
    target = termination_file()
    return target is not None and target.exists() and target.stat().st_size > 0


def write_termination(message: PreflightReport | RunResult, path: Path | None = None) -> None:
    """Write the container's termination message: JSON of at most 4,096 bytes, without credentials.

    The path is `path`, else `termination_file()`; without one nothing is written.
    """
    target = path or termination_file()
    if target is not None:
        target.write_bytes(termination_bytes(message))


def termination_bytes(message: PreflightReport | RunResult) -> bytes:
    """Return the message as JSON, redacted; optional parts are dropped in a fixed order until it fits."""
    document = _redacted(message.model_dump(mode="json", by_alias=True, exclude_none=True))
    for path in _dropped_first(message):
        data = _encode(document)
        if len(data) <= TERMINATION_LIMIT:
            return data
        _drop(document, path)
    return _encode(document)


def _dropped_first(message: PreflightReport | RunResult) -> list[tuple[str, ...]]:
    order: list[tuple[str, ...]] = list(_DROPPED_FIRST)
    if isinstance(message, PreflightReport) or message.stopped_after_step is not None:
        order = [path for path in order if path not in _SENTENCES]
        place = order.index(_KEPT_LONGER)
        order[place:place] = _SENTENCES
    return order


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    return [_redacted(item) for item in value] if isinstance(value, list) else value


def _drop(document: dict[str, Any], path: tuple[str, ...]) -> None:
    """Drop what stands at `path`; an element of a list by its name, `*` for all of them, those of a result by that.

    Of a check that passed the name says enough; of a finding the field and its value. `source=` drops the elements of
    one source, `message=` the messages that say this, `0` the counts that are 0.
    """
    *parents, last = path
    if len(parents) > 1 and parents[1] in _OF_A_LIST:
        name, _, text = last.partition("=")
        for item in document.get(parents[0], []):
            if item.get("result", "*") == parents[1] and (not text or item.get(name) == text):
                item.pop(name, None)
        return
    part: Any = document
    for name in parents:
        part = _named(part, name) if isinstance(part, list) else part.get(name, {})
    if last.startswith("source="):
        if isinstance(part, list):
            source = last.removeprefix("source=")
            part[:] = [item for item in part if item["source"] != source or item["name"] in _MORE_THAN_SET]
    elif last == "0":
        for name in [name for name, value in part.items() if type(value) is int and not value and name not in _COUNTED]:
            del part[name]
    else:
        part.pop(last, None)


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((item for item in items if item.get("name") == name), {})
