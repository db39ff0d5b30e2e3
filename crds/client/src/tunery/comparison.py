"""Compare LoRAJobs: the settings that differ, and the held-out losses that differ by more than their errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tunery.objects import View
from tunery_api.measured import change_text, parse_finite
from tunery_api.methods import TrainingTask
from tunery_api.training import TrainingSpec

OTHER_ROWS: Final = "not comparable: other held-out rows"
UNKNOWN_ROWS: Final = "not comparable: its held-out rows are unknown"
OTHER_TASK: Final = "not comparable: other task"
OTHER_TOKENS: Final = "not comparable: other tokens in the loss"
OTHER_MODEL: Final = "not comparable: other base model"
UNSET: Final = "unset"
_NO_SETTINGS: Final = ("output", "stop", "onStop", "suspend", "ttlSecondsAfterFinished")
"""Fields of the spec that don't influence what is trained."""
_TRAINING: Final = TrainingSpec()
_DEFAULTS: Final = {
    "task": TrainingTask.SFT.value,
    "training.seed": str(_TRAINING.seed),
    "training.maxLength": str(_TRAINING.max_length),
    "training.loss": _TRAINING.loss.value,
    "dataset.evaluation.fraction": "0.05",
}
"""Defaults of the settings on which the held-out loss depends."""
_MEASURED: Final = {
    "method": "status.resolved.method",
    "lora.rank": "status.resolved.rank",
    "model.revision": "status.resolved.revision",
    "dataset.sha256": "status.dataset.sha256",
    "device": "status.resolved.device",
}
"""What a run reports about its settings and inputs, by the field that it belongs to."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A job next to the best of the comparable ones."""

    view: View
    result: str
    """How its held-out loss compares with the lowest one, or why it can't be compared."""

    @property
    def loss(self) -> float | None:
        """The held-out loss after training."""
        return parse_finite(self.view.at("status.metrics.evalLoss"))

    @property
    def base_loss(self) -> float | None:
        """The held-out loss before training."""
        return parse_finite(self.view.at("status.metrics.baseEvalLoss"))

    @property
    def error(self) -> float | None:
        """The standard error of the change of the loss; what the rows have in common before and after cancels."""
        return _error(self.view)

    @property
    def change(self) -> str:
        """The change of the loss by training, with its standard error; empty if it was not measured."""
        improvement = parse_finite(self.view.at("status.metrics.improvement"))
        error = parse_finite(self.view.at("status.metrics.improvementError"))
        return "" if improvement is None else change_text(-improvement, error)

    @property
    def gpu_hours(self) -> float:
        """The GPU hours of the pods that have ended."""
        return float(self.view.at("status.gpuSeconds") or 0) / 3600


def compare(views: Sequence[View]) -> list[Compared]:
    """Return the jobs, those that are comparable with the first one from the lowest loss to the highest.

    A loss is the same within error if the two intervals of one standard error overlap.
    """
    measured, others = list[tuple[float, str, View]](), list[Compared]()
    for view in views:
        why, loss = _not_comparable(views[0], view), _loss(view)
        if why or loss is None:
            others.append(Compared(view, why or "no held-out loss was measured"))
        else:
            measured.append((loss, view.name, view))
    measured.sort(key=lambda each: each[:2])
    return [*(Compared(view, _result((loss, view), measured[0][::2])) for loss, _, view in measured), *others]


def _result(job: tuple[float, View], lowest_job: tuple[float, View]) -> str:
    """Return how the loss of a job compares with the lowest one."""
    (loss, view), (lowest, best) = job, lowest_job
    if view is best:
        return "lowest held-out loss"
    errors = (_error(view), _error(best)) if _has_same_start(view, best) else (None, None)
    share = f" by {change_text(loss / lowest - 1, signed=False)}" if lowest else ""
    if loss == lowest:
        return "same"
    if errors[0] is None or errors[1] is None:
        return f"higher{share}; the error is unknown"
    return "same within error" if loss - lowest <= errors[0] + errors[1] else f"higher{share}"


def _loss(view: View) -> float | None:
    return parse_finite(view.at("status.metrics.evalLoss"))


def _error(view: View) -> float | None:
    error, base = (parse_finite(view.at(f"status.metrics.{name}")) for name in ("improvementError", "baseEvalLoss"))
    return None if error is None or base is None else error * abs(base)


def _not_comparable(first: View, view: View) -> str:
    """Return why the held-out losses of two jobs can't be compared; empty if they can."""
    one, other = _held_out(first), _held_out(view)
    if _effective(first, "task") != _effective(view, "task"):
        return OTHER_TASK
    if one is None or other is None:
        return UNKNOWN_ROWS
    if one != other:
        return OTHER_ROWS
    if _tokens(first) != _tokens(view):
        return OTHER_TOKENS
    return "" if _has_same_tokenizer(first, view) else OTHER_MODEL


def _held_out(view: View) -> tuple[Any, ...] | None:
    """Return what identifies the held-out rows; None if the data set was not read yet."""
    dataset = view.at("status.dataset") or {}
    form = (dataset.get("format"), dataset.get("template"), json.dumps(view.at("spec.dataset.columns"), sort_keys=True))
    if dataset.get("evaluationRows"):
        digest = dataset.get("evaluationSha256")
        return (digest, dataset["evaluationRows"], *form) if digest else None
    if not dataset.get("sha256"):
        return None
    drawn = (_effective(view, "dataset.evaluation.fraction"), _effective(view, "training.seed"))
    return (dataset["sha256"], dataset.get("rows"), *drawn, *form)


def _tokens(view: View) -> tuple[Any, ...]:
    """Return the settings that decide which tokens count in the loss."""
    truncated = bool(view.at("status.dataset.lostTokens"))
    return (_effective(view, "training.loss"), _effective(view, "training.maxLength") if truncated else "")


def _has_same_tokenizer(first: View, view: View) -> bool:
    """Return whether two jobs have one base model, or read the same data as equally many tokens."""
    if first.at("spec.model.uri") == view.at("spec.model.uri"):
        return True
    one, other = (
        tuple(each.at(f"status.dataset.{name}") for name in ("sha256", "tokens", "lossTokens"))
        for each in (first, view)
    )
    return one == other and None not in one


def _has_same_start(one: View, other: View) -> bool:
    """Return whether two jobs began with the same weights: only then their errors are of the same losses."""
    return all(one.at(path) == other.at(path) for path in ("spec.model.uri", "spec.continueFrom"))


def _effective(view: View, path: str) -> object:
    """Return the value of a setting in use."""
    value = view.at(f"spec.{path}")
    written = _DEFAULTS[path] if value is None else _value_text(value)
    return _normal(_resolved(view).get(path, written))


def differing_settings(views: Sequence[View]) -> dict[str, list[str]]:
    """Return the values of each setting that differs, in the order of the jobs.

    The values in use are compared where every job has reported them, otherwise the manifests.
    """
    specs = [dict(_flat(view.spec)) for view in views]
    resolved = [_resolved(view) | _measured(view) for view in views]
    rows = {}
    for path in dict.fromkeys(path for each in (*specs, *resolved) for path in each):
        in_use = all(path in each for each in resolved)
        values = [(each if in_use else spec).get(path, UNSET) for each, spec in zip(resolved, specs, strict=True)]
        if len({_normal(value) for value in values}) > 1:
            rows[path] = values
    return dict(sorted(rows.items()))


def _resolved(view: View) -> dict[str, str]:
    return {each["name"]: each["value"] for each in view.at("status.resolved.values") or ()}


def _measured(view: View) -> dict[str, str]:
    found = {name: view.at(path) for name, path in _MEASURED.items()}
    return {name: str(value) for name, value in found.items() if value is not None}


def _flat(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each value of a spec that influences training."""
    for name, value in spec.items():
        if not prefix and name in _NO_SETTINGS:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _value_text(value)


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _normal(value: str) -> object:
    """Return a value for comparison: 1e-4 is 0.0001."""
    number = parse_finite(value)
    return value if number is None else number
