"""Provide typed views of Tunery's objects, and how a name on the command line finds one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from tunery.cluster import Cluster, Json, resource_of
from tunery.errors import NotFound, UsageError
from tunery_api.errors import did_you_mean
from tunery_api.kinds import JOB_KINDS, KINDS, Kind
from tunery_api.names import API_VERSION, RETRY_ANNOTATION, SWEEP_LABEL
from tunery_api.status import FINAL_PHASES, Phase

_NAMES: Final[Mapping[str, Kind]] = {
    name: kind for kind in Kind for name in (kind.singular, kind.plural, KINDS[kind].short, f"{kind.plural}.tunery.dev")
}
"""What kubectl accepts for a kind, in lower case."""


class Failure(NamedTuple):
    """Why an object failed or is blocked, and how to fix it."""

    reason: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class View:
    """One object as the API server returned it, with the fields that every command reads."""

    body: Json

    @property
    def kind(self) -> Kind:
        """The kind."""
        return Kind(self.body["kind"])

    @property
    def name(self) -> str:
        """The name."""
        return str(self.metadata["name"])

    @property
    def reference(self) -> str:
        """The object as kubectl names it, such as lorajob/support."""
        return f"{self.kind.singular}/{self.name}"

    @property
    def metadata(self) -> Json:
        """The metadata."""
        metadata: Json = self.body["metadata"]
        return metadata

    @property
    def spec(self) -> Json:
        """The spec."""
        spec: Json = self.body.get("spec") or {}
        return spec

    @property
    def status(self) -> Json:
        """The status; empty until the operator has seen the object."""
        status: Json = self.body.get("status") or {}
        return status

    @property
    def phase(self) -> str:
        """The phase; Pending until the operator has seen the object."""
        return str(self.status.get("phase") or Phase.PENDING.value)

    @property
    def finished(self) -> bool:
        """Whether the object has succeeded, failed or was stopped, and no retry was requested since."""
        if self.phase not in FINAL_PHASES or self.kind not in JOB_KINDS:
            return False
        return self.phase != Phase.FAILED or not self._retry_requested

    @property
    def _retry_requested(self) -> bool:
        """Whether the operator has not handled the latest retry yet."""
        retry = (self.metadata.get("annotations") or {}).get(RETRY_ANNOTATION)
        return bool(retry) and retry != self.status.get("observedRetry")

    @property
    def failure(self) -> Failure | None:
        """Why the object failed or is blocked."""
        failure = self.status.get("failure")
        if not failure:
            return None
        return Failure(failure["reason"], failure.get("message", ""), failure.get("hint", ""))

    @property
    def created(self) -> datetime:
        """When the object was created."""
        return parse_time(self.metadata["creationTimestamp"])

    @property
    def sweep(self) -> str | None:
        """The name of the sweep that a trial belongs to."""
        return (self.metadata.get("labels") or {}).get(SWEEP_LABEL)

    def condition(self, kind: str) -> Json | None:
        """Return the condition of a type."""
        return next((each for each in self.status.get("conditions") or () if each["type"] == kind), None)

    def at(self, path: str) -> Any:
        """Return the value at a dotted path, such as status.metrics.loss; None if it is unset."""
        value: Any = self.body
        for part in path.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(part)
        return value


class Target(NamedTuple):
    """What a user named: `support`, or `lorajob/support`."""

    kind: Kind | None
    name: str


def parse_target(text: str) -> Target:
    """Return what `NAME` or `KIND/NAME` names. Raises UsageError for an unknown kind."""
    head, slash, name = text.rpartition("/")
    if not slash:
        return Target(None, text)
    if not name:
        raise UsageError(f"{text} has no name after the kind", f"Write {head}/NAME")
    return Target(parse_kind(head), name)


def parse_kind(text: str) -> Kind:
    """Return the kind that a name such as lorajob, lorajobs or lj stands for. Raises UsageError."""
    kind = _NAMES.get(text.lower())
    if kind is None:
        message = f"{text} is not a kind of Tunery{did_you_mean(text, [each.singular for each in Kind])}"
        raise UsageError(message, f"Write one of {', '.join(each.singular for each in Kind)}")
    return kind


def find(cluster: Cluster, text: str, kinds: Sequence[Kind] = tuple(Kind)) -> View:
    """Return the object that `NAME` or `KIND/NAME` names, of one of `kinds`.

    Raises NotFound if there is none, UsageError if several kinds have an object of that name.
    """
    target = parse_target(text)
    if target.kind is not None and target.kind not in kinds:
        raise UsageError(f"{text}: this command takes {_either(kinds)}")
    wanted = kinds if target.kind is None else (target.kind,)
    found = list(_found(cluster, target.name, wanted))
    if not found:
        there = {each.name for each in list_objects(cluster, wanted)}
        message = f"{_either(wanted)} {target.name} does not exist in namespace {cluster.namespace}"
        message += did_you_mean(target.name, sorted(there))
        raise NotFound("NotFound", message, "List what there is: tunery list, in all namespaces: tunery list -A")
    if len(found) > 1:
        names = " and ".join(view.reference for view in found)
        raise UsageError(f"{text} names {names}", "Write the kind, too, as there")
    return found[0]


def _found(cluster: Cluster, name: str, kinds: Sequence[Kind]) -> Iterator[View]:
    for kind in kinds:
        try:
            yield view(cluster.get(resource_of(kind), name), kind)
        except NotFound as error:
            if error.reason == "NotInstalled":
                raise


def view(body: Json, kind: Kind) -> View:
    """Return the view of an object, without managedFields, which kubectl does not show either.

    An object of a list has no kind and no apiVersion of its own.
    """
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return View({"apiVersion": API_VERSION, **body, "kind": kind.value, "metadata": metadata})


def patch(cluster: Cluster, changed: View, change: Json) -> View:
    """Send a merge patch for this very object, not for a later one of its name, and return what it is then."""
    only_this = {"metadata": {"uid": changed.metadata["uid"], **change.get("metadata", {})}}
    return view(cluster.patch(resource_of(changed.kind), changed.name, change | only_this), changed.kind)


def list_objects(
    cluster: Cluster, kinds: Sequence[Kind] = tuple(Kind), *, selector: str = "", all_namespaces: bool = False
) -> list[View]:
    """Return all objects of some kinds, oldest first."""
    found = [
        view(body, kind)
        for kind in kinds
        for body in cluster.items(resource_of(kind), selector=selector, all_namespaces=all_namespaces)[0]
    ]
    return sorted(found, key=lambda each: (each.metadata["creationTimestamp"], each.name))


def parse_time(text: str) -> datetime:
    """Return the time that a Kubernetes timestamp states."""
    return datetime.fromisoformat(text).astimezone(UTC)


def parse_duration(text: str) -> float:
    """Return the seconds of a time such as 90s, 30m, 2h or 1d12h; a plain number means seconds. Raises UsageError."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        raise UsageError(f"{text} is not a time", "Write a number with a unit, such as 90s, 30m, 2h or 1d")
    return sum(float(value) * _SECONDS[unit] for value, unit in re.findall(r"([\d.]+)([smhd])", text))


_SECONDS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _either(kinds: Sequence[Kind]) -> str:
    names = [kind.value for kind in kinds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


RUNNABLE: Final = JOB_KINDS
"""The kinds that run to an end: all but AdapterServer."""
