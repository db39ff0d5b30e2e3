"""Compute the adapters that a server should serve, from its references, its selector, and published results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from tunery_api.adapterserver import AdapterServerSpec, AdapterSource
from tunery_api.errors import did_you_mean
from tunery_api.fields import OpenModel
from tunery_api.kinds import Kind
from tunery_api.methods import QUANTIZED
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact, shorten
from tunery_api.remedies import edit, remedies_for, retry
from tunery_api.serving import (
    ClientRules,
    Desired,
    DesiredAdapter,
    HeldAdapter,
    Unservable,
    base_problem,
    method_problem,
    no_slot_left,
    rank_problem,
    too_many_kept_loaded,
)
from tunery_api.status import FINAL_PHASES, Phase
from tunery_operator.observed.published_result import PublishedResult, removal_remedy, removal_text
from tunery_operator.planning.resolution import (
    UNKNOWN_MOUNTS,
    AdapterNote,
    ApiKeyMounts,
    DanglingAlias,
    PendingAdapter,
    RejectedAdapter,
    Resolution,
    RetainedAdapter,
    SkippedObject,
    api_keys,
    previous_rules,
    selects,
    unknown_models,
)

LONGEST_NAME: Final = 128
"""Characters of the name of an adapter, as in spec.adapters."""
MAX_ADAPTERS: Final = 4000
MAX_BYTES: Final = 900 * 1024
"""Bytes of adapters.json: a ConfigMap can have 1 MiB in total."""
MAX_HELD: Final = 256
"""Characters of the message for clients that request an adapter which is not served yet."""
ADAPTER_WAITING: Final = "AdapterWaiting"
"""The reason of an adapter that does not exist yet; a rejected one has the reason of its rejection."""

_QUANTIZED: Final = frozenset(method.value for method in QUANTIZED)
_INEXACT: Final = (
    "trained by {} on a quantized base model: answers on this one are close, not the same. For exact answers, merge it "
    "with an AdapterMerge into: Model"
)

Results = Mapping[tuple[Kind, str], PublishedResult]
Part = TypeVar("Part", bound=OpenModel)


def resolve(
    spec: AdapterServerSpec, results: Results, before: Desired, mounts: ApiKeyMounts = UNKNOWN_MOUNTS
) -> Resolution:
    """Return the adapters to serve, and the references that can't be served.

    `results` are the LoRAJobs and AdapterMerges of the namespace by kind and name, at least those that the spec names
    or selects, in any order. `before` is the content of the server's own ConfigMap, empty if there is none. `mounts`
    are the Secrets of API keys that pods mount: their rules are still needed.
    """
    resolver = _Resolver(spec, results, {item.name: item for item in before.adapters})
    for source in spec.adapters or ():
        resolver.name(source)
    for result in _selected(spec, results):
        resolver.select(result)
    return Resolution(
        _numbered(_build_list(resolver, list(previous_rules(spec, before, mounts))), before),
        tuple(resolver.pending),
        tuple(resolver.rejected),
        tuple(sorted(resolver.skipped)),
        tuple(resolver.retained),
        tuple(resolver.notes),
        tuple(_dangling_aliases(resolver)),
        tuple(unknown_models(spec, _known(resolver))),
    )


def _numbered(desired: Desired, before: Desired) -> Desired:
    """Return the list with the next revision if it differs from `before`, else `before`."""
    lists = {name: sorted(getattr(before, name), key=lambda item: item.name) for name in ("adapters", "held")}
    same = desired == before.model_copy(update={**lists, "revision": desired.revision})
    return before if same else desired.model_copy(update={"revision": before.revision + 1})


def _build_list(resolver: _Resolver, before: list[ClientRules]) -> Desired:
    """Return the list for the replicas, as far as it fits, with adapters sorted by name."""
    spec = resolver.spec
    clients = {client.name: list(client.models) for client in spec.access.clients or ()}
    desired = Desired(aliases=list(spec.aliases or ()), clients=clients, api_keys=api_keys(spec))
    adapters, room = _within_limits(resolver, MAX_BYTES - _size(desired))
    # A pod keeps the rules that it has read once: no adapter is dropped for them.
    before = list(_take_fitting(before, room))
    room -= sum(map(_size, before))
    held = sorted(_not_served(resolver, {item.name for item in adapters}, room), key=lambda item: item.name)
    adapters = sorted(adapters, key=lambda item: item.name)
    return desired.model_copy(update={"adapters": adapters, "before": before, "held": held})


def _take_fitting(parts: Iterable[Part], room: int) -> Iterator[Part]:
    for part in parts:
        room -= _size(part)
        if room < 0:
            return
        yield part


def _not_served(resolver: _Resolver, served: Collection[str], room: int) -> Iterator[HeldAdapter]:
    """Yield the adapters that are not served yet, as far as they fit: those that the spec names come first."""
    yield from _take_fitting(_all_not_served(resolver, served), room)


def _all_not_served(resolver: _Resolver, served: Collection[str]) -> Iterator[HeldAdapter]:
    found = {item.name: (ADAPTER_WAITING, item.message) for item in resolver.pending}
    found |= {item.name: (item.reason.value, item.message) for item in resolver.rejected}
    names = sorted(found.keys() - served, key=lambda name: (name not in resolver.named, name))
    for name in names:
        reason, message = found[name]
        yield HeldAdapter(name=name, reason=reason, message=shorten(redact(message), MAX_HELD))


def _dangling_aliases(resolver: _Resolver) -> Iterator[DanglingAlias]:
    """Yield the targets of aliases that are no adapters of this server."""
    known = _known(resolver)
    for alias in resolver.spec.aliases or ():
        yield from (DanglingAlias(alias.name, each.adapter) for each in alias.targets if each.adapter not in known)


def _known(resolver: _Resolver) -> set[str]:
    """Return the names of the base model and of all adapters, without aliases."""
    return {resolver.base, *resolver.taken, *(result.name for result in _unfinished(resolver))}


def _unfinished(resolver: _Resolver) -> Iterator[PublishedResult]:
    """Yield the unfinished objects that the selector matches."""
    selector = resolver.spec.adapter_selector
    if selector is not None:
        unfinished = (result for result in resolver.results.values() if result.phase not in FINAL_PHASES)
        yield from (result for result in unfinished if selects(selector, result.labels))


def _size(part: OpenModel) -> int:
    """Return the bytes of a part of adapters.json, with its separator."""
    return len(part.model_dump_json(by_alias=True, exclude_none=True).encode()) + 1


def _selected(spec: AdapterServerSpec, results: Results) -> list[PublishedResult]:
    """Return the succeeded objects that the selector matches, older ones first."""
    selector = spec.adapter_selector
    if selector is None:
        return []
    done = (result for result in results.values() if result.phase == Phase.SUCCEEDED.value and result.uri is not None)
    found = [result for result in done if selects(selector, result.labels)]
    return sorted(found, key=lambda result: (result.created, result.kind.value, result.name))


@dataclass(slots=True)
class _Resolver:
    """The state of a resolution: what is served, pending, rejected and skipped so far."""

    spec: AdapterServerSpec
    results: Results
    before: Mapping[str, DesiredAdapter]
    wanted: list[DesiredAdapter] = field(default_factory=list)
    """By priority: adapters that the spec names first, then older objects."""
    pending: list[PendingAdapter] = field(default_factory=list)
    rejected: list[RejectedAdapter] = field(default_factory=list)
    skipped: list[SkippedObject] = field(default_factory=list)
    retained: list[RetainedAdapter] = field(default_factory=list)
    notes: list[AdapterNote] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)
    """The source of each name, as in messages."""

    @property
    def base(self) -> str:
        """The name of the base model."""
        return self.spec.model.effective_served_name()

    @property
    def named(self) -> set[str]:
        """The names that spec.adapters gives."""
        return {item.name for item in self.spec.adapters or ()}

    # What the spec names

    def name(self, item: AdapterSource) -> None:
        """Resolve an entry of spec.adapters."""
        if item.uri is not None:
            self.taken[item.name] = "uri"
            uri = item.uri.rstrip("/")
            self.wanted.append(DesiredAdapter(name=item.name, uri=uri, manifest_sha256=item.manifest_sha256))
            return
        kind, reference = Kind.LORAJOB, item.lora_job_ref
        if reference is None:
            kind, reference = Kind.ADAPTERMERGE, item.adapter_merge_ref
        if reference is None:
            return
        source = f"{kind.value}/{reference.name}"
        self.taken[item.name] = source
        self._resolve(item.name, source, self.results.get((kind, reference.name)))

    def _resolve(self, name: str, source: str, result: PublishedResult | None) -> None:
        problem = None if result is None else self._without_adapter(result)
        if result is None or (problem is None and result.uri is None):
            self._retain(name, source, result)
            return
        problem = problem or self._incompatible(result)
        if problem is None:
            self._accept(name, result)
            return
        self._reject(name, result, problem)
        old = self._previous(name, source)
        # The previous version is still served, unless it has the rejected content.
        if old is not None and (old.manifest_sha256 != result.manifest_sha256 or _is_engine_limit(problem)):
            self.wanted.append(old)

    def _retain(self, name: str, source: str, result: PublishedResult | None) -> None:
        """Record a reference without a result now: its previous result is still served."""
        reference_text = source.replace("/", " ")
        state = "does not exist" if result is None else f"is {result.phase}"
        old = self._previous(name, source)
        if old is None:
            yet = f" yet{self._suggestion(source)}" if result is None else ""
            self.pending.append(PendingAdapter(name, source, f"{reference_text} {state}{yet}", absent=result is None))
            return
        self.wanted.append(old)
        ends = "until spec.adapters drops it" if result is None else "until it has published again"
        more = " any more" if result is None else ""
        text = f"{reference_text} {state}{more}; what it published before is served {ends}"
        self.retained.append(RetainedAdapter(name, source, text))

    def _suggestion(self, source: str) -> str:
        kind, _, name = source.partition("/")
        return did_you_mean(name, sorted(result.name for result in self.results.values() if result.kind.value == kind))

    def _previous(self, name: str, source: str) -> DesiredAdapter | None:
        old = self.before.get(name)
        return old if old is not None and old.source == source else None

    def _without_adapter(self, result: PublishedResult) -> Unservable | None:
        """Return why an object cannot publish an adapter without a fix; None if it can."""
        reference_text = result.source.replace("/", " ")
        if result.kind is Kind.ADAPTERMERGE and result.into != "Adapter":
            text = f"{reference_text} publishes a full model (into: {result.into}), not an adapter"
            remedy = retry("Serve it as the model of its own AdapterServer, or merge again with into: Adapter")
            return Unservable(FailureReason.ADAPTER_UNSUPPORTED, text, remedy)
        if result.phase not in FINAL_PHASES or (result.uri is not None and result.phase != Phase.FAILED.value):
            return None
        if result.removed_by is not None:
            text = f"{reference_text} {removal_text(result.removed_by)}"
            return Unservable(FailureReason.ADAPTER_MISSING, text, edit(removal_remedy(result.removed_by)))
        how = {Phase.FAILED.value: "has failed", Phase.STOPPED.value: "was stopped and has published no adapter"}
        detail = how.get(result.phase, "has succeeded and published no adapter")
        remedy = retry(f"Fix {reference_text} as its status says, or name another one")
        return Unservable(FailureReason.ADAPTER_MISSING, f"{reference_text} {detail}", remedy)

    # What the selector finds

    def select(self, result: PublishedResult) -> None:
        """Add an object that the selector matches, or the reason to skip it."""
        problem = self._skip_reason(result)
        if problem is not None:
            self.skipped.append(SkippedObject(result.source, problem))
            return
        if result.name in self.taken:
            # Named and selected: it is one adapter.
            return
        self.taken[result.name] = result.source
        unfit = self._incompatible(result)
        if unfit is None:
            self._accept(result.name, result)
            return
        self._reject(result.name, result, unfit)
        old = self._previous(result.name, result.source)
        if old is not None and _is_engine_limit(unfit):
            self.wanted.append(old)

    def _skip_reason(self, result: PublishedResult) -> str | None:
        if result.kind is Kind.ADAPTERMERGE and result.into != "Adapter":
            return f"is a full model (into: {result.into})"
        if base_problem(result.served_name, self.base) is not None:
            return f"is for base {result.served_name}"
        if result.name == self.base:
            return "has the name of the base model; spec.adapters can give it another"
        if len(result.name) > LONGEST_NAME:
            return f"has a name of more than {LONGEST_NAME} characters; spec.adapters can give it another"
        if any(alias.name == result.name for alias in self.spec.aliases or ()):
            return "spec.aliases has an alias of this name; spec.adapters can give it another"
        holder = self.taken.get(result.name)
        if holder is None or holder == result.source:
            return None
        if result.name in self.named:
            return "spec.adapters has an entry of this name"
        return f"{holder} has the same name and is older"

    # Both

    def _accept(self, name: str, result: PublishedResult) -> None:
        self.wanted.append(_desired(name, result))
        if result.method in _QUANTIZED:
            self.notes.append(AdapterNote(name, _INEXACT.format(result.method)))

    def _incompatible(self, result: PublishedResult) -> Unservable | None:
        return (
            base_problem(result.served_name, self.base)
            or method_problem(result.method)
            or rank_problem(result.rank, self.spec.engine.max_rank)
        )

    def _reject(self, name: str, result: PublishedResult, why: Unservable) -> None:
        content = (result.uri, result.manifest_sha256, result.rank)
        self.rejected.append(RejectedAdapter(name, result.source, *why, *content))


def _is_engine_limit(problem: Unservable) -> bool:
    """Return whether the settings of the engine reject an adapter that was on the list before.

    Replicas with other settings serve it until they are replaced; replicas with these settings reject it themselves.
    """
    return problem.reason is FailureReason.RANK_TOO_HIGH


def _desired(name: str, result: PublishedResult) -> DesiredAdapter:
    return DesiredAdapter(
        name=name, uri=(result.uri or "").rstrip("/"), manifest_sha256=result.manifest_sha256, source=result.source
    )


def _within_limits(resolver: _Resolver, room: int) -> tuple[list[DesiredAdapter], int]:
    """Return the adapters that fit, and the bytes that are left; reject all others.

    Rejected are the newest that the selector finds, unless they are served already; more adapters with keepLoaded than
    the engine has slots; and adapters that could never be loaded, as those take all slots. An adapter that could never
    be loaded and was on the list before stays on it.
    """
    largest, fitting, retained = resolver.spec.engine.max_loaded_adapters, list[DesiredAdapter](), 0
    rejected = {item.name for item in resolver.rejected}
    for item in _by_priority(resolver):
        room -= _size(item)
        retained += item.keep_loaded
        fits = room >= 0 and len(fitting) < MAX_ADAPTERS
        why = _no_slot(item, retained, largest) or (None if fits else _too_large())
        # An adapter on the list stays there, for replicas with more slots; other replicas reject it themselves.
        if fits and (why is None or item.name in resolver.before):
            fitting.append(item)
        if why is not None and item.name not in rejected:
            resolver.rejected.append(RejectedAdapter(item.name, item.source, *why, item.uri, item.manifest_sha256))
    return fitting, max(room, 0)


def _no_slot(item: DesiredAdapter, retained: int, largest: int) -> Unservable | None:
    """Return why the engine has no slot for an adapter; `retained` adapters, with this one, stay loaded."""
    if item.keep_loaded:
        return too_many_kept_loaded(largest) if retained > largest else None
    return no_slot_left(largest) if retained >= largest else None


def _by_priority(resolver: _Resolver) -> Iterable[DesiredAdapter]:
    """Return the desired adapters by priority: kept loaded, named by the spec, served now, all others."""
    stay = {item.name for item in resolver.spec.adapters or () if item.keep_loaded}
    wanted = [item.model_copy(update={"keep_loaded": item.name in stay}) for item in resolver.wanted]
    named = resolver.named
    return sorted(
        wanted, key=lambda item: (not item.keep_loaded, item.name not in named, item.name not in resolver.before)
    )


def _too_large() -> Unservable:
    text = f"the list of what the server serves is full: {MAX_ADAPTERS:,} adapters or {MAX_BYTES // 1024} KiB"
    return Unservable(FailureReason.TOO_MANY_ADAPTERS, text, remedies_for(FailureReason.TOO_MANY_ADAPTERS)[0])
