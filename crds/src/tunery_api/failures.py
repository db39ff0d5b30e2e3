"""Define a failure as data, and render its hint: the sentences that say what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from tunery_api.fields import OpenModel, Text
from tunery_api.names import RETRY_ANNOTATION
from tunery_api.reasons import FailureReason
from tunery_api.redact import MAX_MESSAGE_BYTES, shorten
from tunery_api.remedies import MAX_FACTS, MAX_REMEDIES, Action, Remedy, remedies_for

OF_TEMPLATE: Final = "template."
"""The prefix of the fields in a LoRASweep's template."""
_LABELS: Final[Mapping[str, str]] = {
    "chartValues": "If the platform is the cause, ask a cluster admin to check these values of Tunery's chart",
    "checkpoint": "Stored checkpoint",
    "curve": "Loss curve",
    "dataReport": "Data report",
    "dataReportError": "Data report not stored",
    "errors": "Failed lines",
    "invalidLines": "Invalid lines",
    "previousAttempt": "The previous attempt",
    "rejectedAdapter": "What was trained, published as rejected",
    "results": "Answered lines",
    "warmStartFrom": "To learn from these trials, set warmStartFrom",
}
"""The label of each fact in a hint."""


class Failure(OpenModel):
    """Why an object failed, or what blocks it."""

    reason: Annotated[FailureReason | Annotated[str, Field(max_length=128)], Field(union_mode="left_to_right")]
    """A string is a reason of a later version."""
    message: Annotated[str, Field(max_length=1024)]
    remedies: list[Remedy] = Field(default_factory=list, max_length=MAX_REMEDIES)
    """Empty: the default remedies of the reason."""
    facts: dict[str, Annotated[str, Field(max_length=1024)]] = Field(default_factory=dict, max_length=MAX_FACTS)
    """Data for the reader, such as the URI of the data report, by a key of `_LABELS`."""

    @property
    def fixes(self) -> Sequence[Remedy]:
        """The remedies of this failure, or the default ones of its reason."""
        return self.remedies or remedies_for(self.reason)


class FailureStatus(OpenModel):
    """Why the object failed or is blocked, and how to fix it."""

    reason: str = Field(
        min_length=1, max_length=128, description="Failure reason, in CamelCase (docs/operations.md#failure-reasons)."
    )
    message: Text = Field(description="What happened.")
    hint: Text | None = Field(None, description="How to fix it, for people.")
    remedies: list[Remedy] | None = Field(
        None,
        max_length=MAX_REMEDIES,
        description="Ways to fix it, best first. Unset: the default remedies of the reason.",
    )
    facts: dict[str, Text] | None = Field(
        None, max_length=MAX_FACTS, description="Data about the failure, such as the URI of the data report."
    )
    exit_code: int | None = Field(
        None, description="Exit code of the container. Unset: no container failed, or its exit code is unknown."
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that a hint is written for."""

    kind: str
    name: str
    namespace: str
    sweep: str | None = None
    """The name of the LoRASweep if the object is one of its trials."""
    ended: bool = True
    """True: the object has failed. False: it is blocked, and continues after the fix."""

    @property
    def retry_command(self) -> str:
        """The command that retries this object after it has failed."""
        kind, name = (self.kind, self.name) if self.sweep is None else ("LoRASweep", self.sweep)
        return (
            f'kubectl annotate {kind.lower()} {name} -n {self.namespace} --overwrite {RETRY_ANNOTATION}="$(date +%s)"'
        )


def render_hint(failure: Failure, subject: Subject | None) -> str:
    """Return how to fix a failure, in at most MAX_MESSAGE_BYTES; a command in it is never cut.

    `subject` is the object that failed or is blocked; None: a run without a cluster.
    """
    in_place, changes = _split(failure.fixes, subject)
    said = [*_fix(in_place, subject), *_change(changes, subject, also=bool(in_place))]
    said += [f"{_LABELS[key]}: {value}." for key, value in failure.facts.items() if key in _LABELS]
    command = _follow_up(subject, retry=bool(in_place))
    return shorten(" ".join(said), MAX_MESSAGE_BYTES - len(command.encode())) + command


def sentences(remedies: Sequence[Remedy]) -> str:
    """Return remedies as text without a retry command: for a server, whose adapters change in place."""
    return f"{_joined(remedies)}."


def _split(remedies: Iterable[Remedy], subject: Subject | None) -> tuple[list[Remedy], list[Remedy]]:
    """Return the remedies that keep the object, and those that need a new manifest.

    The template of a sweep is immutable, so a failed trial needs a new manifest too.
    """
    fixed = subject is None or (subject.ended and subject.sweep is not None)
    in_place: list[Remedy] = []
    changes: list[Remedy] = []
    for remedy in remedies:
        new = remedy.action == Action.RECREATE or (remedy.action == Action.EDIT and fixed)
        (changes if new else in_place).append(remedy)
    return in_place, changes


def _fix(remedies: Sequence[Remedy], subject: Subject | None) -> Iterable[str]:
    if not remedies:
        return
    text = _joined(remedies)
    if subject is None:
        yield f"{text}, and run it again."
    elif subject.ended or subject.kind == "AdapterServer":
        yield f"{text}."
    else:
        yield f"{text}. The {subject.kind} then continues without a retry."


def _change(remedies: Sequence[Remedy], subject: Subject | None, *, also: bool) -> Iterable[str]:
    if not remedies:
        return
    text = _joined(remedies)
    where = "in the manifest" if subject is None else f"in a new {subject.kind}"
    of_template = any(path.startswith(OF_TEMPLATE) for remedy in remedies for path in remedy.fields)
    if subject is not None and (of_template or subject.sweep is not None):
        where = "in the template of a new LoRASweep"
    yield f"Or, {where}: {_lower(text)}." if also else f"{text}, {where}."


def _follow_up(subject: Subject | None, *, retry: bool) -> str:
    """Return the last sentence: how to retry, and that the sweep of a trial continues."""
    if subject is None or not subject.ended or subject.kind == "AdapterServer":
        return ""
    if subject.sweep is not None:
        return f" LoRASweep {subject.sweep} continues without this trial." + (
            f" If the sweep has failed, retry it: {subject.retry_command}" if retry else ""
        )
    return f" To retry: {subject.retry_command}" if retry else ""


def _joined(remedies: Sequence[Remedy]) -> str:
    first, *others = (remedy.text for remedy in remedies)
    return "; or ".join([first, *map(_lower, others)])


def _lower(text: str) -> str:
    """Return an imperative as it follows a colon or a semicolon."""
    return text[:1].lower() + text[1:]
