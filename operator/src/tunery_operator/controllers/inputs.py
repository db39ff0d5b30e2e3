"""Provide the adapters that an object waits for: resolved by name once, and then read from its status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.inputs import LocalReference, OutputSpec
from tunery_api.kinds import Kind
from tunery_api.reasons import FailureReason
from tunery_api.serverstatus import AdapterState, ServerPhase
from tunery_api.serving import Desired
from tunery_api.sweepstatus import FINAL_TRIAL_STATES
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.observed.metadata import Key, controller_of, parse_owner
from tunery_operator.planning.inputs import (
    AdapterInput,
    FailedInput,
    Input,
    ReadyInput,
    UnfinishedInput,
    checkpoint_input,
    lorajob_input,
    parse_input_reference,
    plain_input,
    record,
)
from tunery_operator.planning.job import checkpoints_uri, output_location
from tunery_operator.runtime.reader import peek_object
from tunery_operator.status.snapshot import Snapshot


class InputSource(NamedTuple):
    """An adapter in a spec, by its LoRAJob or its URI; or the checkpoints of a LoRAJob."""

    reference: LocalReference | None
    uri: str | None
    checkpoints: bool = False
    unmergeable: Mapping[str, str] | None = None
    """For a merge: the methods that it cannot merge, each with the reason."""


class Inputs(NamedTuple):
    """The inputs of an object as they are now."""

    items: tuple[Input, ...]
    references: tuple[dict[str, Any], ...]
    """The value of status.inputReferences."""
    has_new: bool
    """Whether the status does not have some of them yet."""

    @property
    def ready(self) -> list[ReadyInput] | None:
        """The inputs if each of them is ready, else None."""
        ready = [item for item in self.items if isinstance(item, ReadyInput)]
        return ready if len(ready) == len(self.items) else None

    def added_to(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with these inputs."""
        return replace(snapshot, inputs=self.items, input_references=self.references)


def resolve_inputs(context: ReconcileContext, obj: ManagedObject, sources: Iterable[InputSource]) -> Inputs:
    """Return the inputs from these sources; a resolved one is never looked up again."""
    known = {entry["name"]: entry for entry in obj.status.get("inputReferences") or ()}
    items = tuple(_resolve(context, obj, source, known) for source in sources)
    fresh = {item.name: record(item) for item in items if isinstance(item, ReadyInput) and item.name not in known}
    fresh.pop(None, None)
    return Inputs(items, (*known.values(), *fresh.values()), bool(fresh))


def _resolve(
    context: ReconcileContext, obj: ManagedObject, source: InputSource, known: Mapping[str, Any]
) -> AdapterInput:
    if source.reference is None:
        return plain_input(source.uri or "")
    name = source.reference.name
    if name in known:
        return parse_input_reference(known[name])
    return _look_up(context, obj.owner.key, name, source)


def refresh_inputs(context: ReconcileContext, obj: ManagedObject, status: dict[str, Any]) -> dict[str, Any]:
    """Return the status for a retry after AdapterCorrupt or AdapterMissing: inputs are looked up again.

    A URI is read again. A LoRAJob that has published since is used as it is now, and a deleted one as it was. A failed
    input is dropped, so that the next reconcile reports why it failed.
    """
    reason = (obj.status.get("failure") or {}).get("reason")
    if reason not in (FailureReason.ADAPTER_CORRUPT.value, FailureReason.ADAPTER_MISSING.value):
        return status
    resolved = {name: value for name, value in (status.get("resolved") or {}).items() if name != "continuedFrom"}
    status = {**status, "resolved": resolved} if resolved else status
    entries = obj.status.get("inputReferences")
    if not entries:
        return status
    now = [_refreshed(context, obj, entry) for entry in entries]
    return {**status, "inputReferences": [entry for entry in now if entry is not None]}


def _refreshed(context: ReconcileContext, obj: ManagedObject, entry: dict[str, Any]) -> dict[str, Any] | None:
    found = _look_up(context, obj.owner.key, entry["name"], InputSource(None, None))
    if isinstance(found, FailedInput):
        return None
    return record(found) if isinstance(found, ReadyInput) else entry


def _look_up(context: ReconcileContext, key: Key, name: str, source: InputSource) -> AdapterInput:
    """Return the current result of the LoRAJob of that name. Raises StaleObject, ApiFailure."""
    body = peek_object(context.client, context.cache, Key(Kind.LORAJOB, key.namespace, name))
    if body is None and context.cache.get(Key(Kind.ADAPTERMERGE, key.namespace, name)) is not None:
        return UnfinishedInput(
            name, "does not exist, but an AdapterMerge of that name does: name its result by its uri", exists=False
        )
    if source.checkpoints:
        return checkpoint_input(name, body, _checkpoints_of(context, body) if body is not None else None)
    return lorajob_input(name, body, context.platform.settings.default_output.secret_name, source.unmergeable)


def _checkpoints_of(context: ReconcileContext, body: Mapping[str, Any]) -> str | None:
    """Return the URI for the checkpoints of a LoRAJob, which may not exist; None if its output is invalid."""
    owner = parse_owner(Kind.LORAJOB, body)
    try:
        output = OutputSpec.model_validate((body.get("spec") or {}).get("output") or {})
        return checkpoints_uri(output_location(output, owner, context.platform.settings).uri, owner)
    except (InvalidSpec, ValidationError):
        return None


def reject_cycle(context: ReconcileContext, obj: ManagedObject, source: LocalReference, field: str) -> None:
    """Raise InvalidSpec if a LoRAJob would start from one that waits, directly or indirectly, for it.

    Called before a spec is accepted: the last object of a cycle is rejected, and the others fail with it.
    """
    namespace, own = obj.owner.key.namespace, obj.owner.key.name
    chain, name = [own], source.name
    while name not in chain:
        chain.append(name)
        body = context.cache.body(Key(Kind.LORAJOB, namespace, name)) or {}
        references = [item["loraJobRef"] for item in _sources(body.get("spec") or {}) if item.get("loraJobRef")]
        if not references:
            return
        name = references[0]["name"]
    if name == own:
        text = f"this job would wait for itself: {' → '.join([*chain, own])}"
        raise InvalidSpec([FieldError(f"spec.{field}.loraJobRef.name", text)])


def is_awaited(context: ReconcileContext, obj: ManagedObject) -> bool:
    """Return whether an unfinished object refers to this one, or created it, and has not recorded its result."""
    cache, key = context.cache, obj.owner.key
    views = [view for store in cache.objects.values() for view in store.items(key.namespace) if view.key != key]
    for other in views:
        body = other.body
        if body is None:
            continue
        if other.key.kind is Kind.ADAPTERSERVER:
            if _server_awaits(body, cache.state(other.key).desired, key):
                return True
        elif other.key.kind is Kind.LORASWEEP:
            if _sweep_awaits(body, obj):
                return True
        elif key.kind is Kind.LORAJOB and _awaits(body, key.name):
            return True
    return False


def _awaits(body: Mapping[str, Any], name: str) -> bool:
    known = [entry.get("name") for entry in (body.get("status") or {}).get("inputReferences") or ()]
    return name not in known and any(
        (item.get("loraJobRef") or {}).get("name") == name for item in _sources(body.get("spec") or {})
    )


def _sweep_awaits(body: Mapping[str, Any], obj: ManagedObject) -> bool:
    """Return whether an object is a trial of this sweep whose row is not final: by the row's uid, or by its owner."""
    rows = {row.get("uid"): row.get("state") for row in (body.get("status") or {}).get("trials") or ()}
    if obj.owner.uid in rows:
        return rows[obj.owner.uid] not in FINAL_TRIAL_STATES
    made = controller_of(obj.body).get("uid") == (body.get("metadata") or {}).get("uid")
    return made and obj.owner.sweep is not None


_REFERENCES: Final = {Kind.LORAJOB: "loraJobRef", Kind.ADAPTERMERGE: "adapterMergeRef"}
"""How a server refers to an object by name."""


def _server_awaits(body: Mapping[str, Any], desired: Desired | None, key: Key) -> bool:
    """Return whether a server refers to an object, and neither serves its adapter nor reports why not."""
    spec, status, source = body.get("spec") or {}, body.get("status") or {}, f"{key.kind.value}/{key.name}"
    field = _REFERENCES.get(key.kind, "")
    named = {item.get("name") for item in _sources(spec) if (item.get(field) or {}).get("name") == key.name}
    taken = {item.name for item in (desired.adapters if desired is not None else ()) if item.source == source}
    reported = [item for item in status.get("adapters") or () if item.get("source") == source]
    checked = {item["name"] for item in reported if item.get("state") != AdapterState.WAITING.value}
    return status.get("phase") != ServerPhase.INVALID.value and not named <= taken | checked


def _sources(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [*(spec.get("adapters") or ()), *(spec.get(name) or {} for name in ("continueFrom", "resumeFrom"))]
