"""What a server is to serve: its references and its selector, and what each object offers, become one list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tunery_api.adapterserver import AdapterServerSpec, AdapterSource
from tunery_api.kinds import Kind
from tunery_api.methods import QUANTIZED
from tunery_api.reasons import ADVICE, FailureReason
from tunery_api.serving import Desired, DesiredAdapter
from tunery_api.status import FINAL_PHASES, Phase
from tunery_api.unservable import Unservable, base_problem, method_problem, rank_problem, too_many
from tunery_operator.plan.selecting import selects
from tunery_operator.views.offer import Offer

LONGEST_NAME: Final = 128
"""Of an adapter, as spec.adapters says it, too."""
MAX_ADAPTERS: Final = 4000
MAX_BYTES: Final = 900 * 1024
"""Of adapters.json: a ConfigMap holds 1 MiB with all that is around it."""

_QUANTIZED: Final = frozenset(method.value for method in QUANTIZED)
_INEXACT: Final = (
    "trained by {} on a quantised base, and served on this one as it is: close, not the same. What an AdapterMerge "
    "into: Model makes of it is exact"
)

Offers = Mapping[tuple[Kind, str], Offer]


class Waiting(NamedTuple):
    """An adapter that is wanted and does not exist yet."""

    name: str
    source: str
    message: str


class Refused(NamedTuple):
    """An adapter that is wanted and cannot be served as it is; what was served under its name before may go on."""

    name: str
    source: str
    reason: FailureReason
    message: str
    hint: str
    uri: str | None = None
    manifest_sha256: str | None = None
    rank: int | None = None


class Skipped(NamedTuple):
    """An object that the selector found and that is not for this server."""

    source: str
    reason: str


class Kept(NamedTuple):
    """An adapter that is served although its object offers it no more."""

    name: str
    source: str
    message: str


class Note(NamedTuple):
    """What to know of an adapter that is served well enough."""

    name: str
    message: str


class Resolution(NamedTuple):
    """What became of every reference and of the selector."""

    desired: Desired
    """Its revision is that of `before` where nothing changed, else one more."""
    waiting: tuple[Waiting, ...] = ()
    refused: tuple[Refused, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    kept: tuple[Kept, ...] = ()
    notes: tuple[Note, ...] = ()


def resolve(spec: AdapterServerSpec, offers: Offers, before: Desired) -> Resolution:
    """Return what is to be served.

    `offers` are the LoRAJobs and AdapterMerges of the namespace by kind and name, those at least that the spec names or
    selects; `before` is what the server's own ConfigMap says, an empty Desired where there is none. In which order
    `offers` come makes no difference.
    """
    work = _Work(spec, offers, {item.name: item for item in before.adapters})
    for source in spec.adapters or ():
        work.name(source)
    for offer in _selected(spec, offers):
        work.select(offer)
    adapters = sorted(_within_limits(work, spec.engine.max_loaded_adapters), key=lambda item: item.name)
    changed = adapters != sorted(before.adapters, key=lambda item: item.name)
    return Resolution(
        Desired(revision=before.revision + changed, adapters=adapters if changed else before.adapters),
        tuple(work.waiting),
        tuple(work.refused),
        tuple(sorted(work.skipped)),
        tuple(work.kept),
        tuple(work.notes),
    )


def _selected(spec: AdapterServerSpec, offers: Offers) -> list[Offer]:
    """Return what the selector finds that has succeeded, older objects first."""
    selector = spec.adapter_selector
    if selector is None:
        return []
    done = (offer for offer in offers.values() if offer.phase == Phase.SUCCEEDED.value and offer.uri is not None)
    found = [offer for offer in done if selects(selector, offer.labels)]
    return sorted(found, key=lambda offer: (offer.created, offer.kind.value, offer.name))


@dataclass(slots=True)
class _Work:
    """What was found out so far."""

    spec: AdapterServerSpec
    offers: Offers
    before: Mapping[str, DesiredAdapter]
    wanted: list[DesiredAdapter] = field(default_factory=list)
    """In the order of their right to be served: what the spec names, then older objects."""
    waiting: list[Waiting] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)
    """By whom each name is taken: a source, as in messages."""

    @property
    def base(self) -> str:
        """The name of the base model."""
        return self.spec.model.effective_served_name()

    # What the spec names

    def name(self, item: AdapterSource) -> None:
        """Take an entry of spec.adapters."""
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
        self._refer(item.name, source, self.offers.get((kind, reference.name)))

    def _refer(self, name: str, source: str, offer: Offer | None) -> None:
        problem = None if offer is None else self._never(offer)
        if offer is None or (problem is None and offer.uri is None):
            self._wait(name, source, offer)
            return
        problem = problem or self._unfit(offer)
        if problem is None:
            self._take(name, offer)
            return
        self._refuse(name, offer, problem)
        old = self._old(name, source)
        # What was served before goes on; but not the very content that is refused, as after maxRank was lowered.
        if old is not None and old.manifest_sha256 != offer.manifest_sha256:
            self.wanted.append(old)

    def _wait(self, name: str, source: str, offer: Offer | None) -> None:
        """Take a reference to an object that offers nothing now: what it offered before goes on."""
        words = source.replace("/", " ")
        state = "does not exist" if offer is None else f"is {offer.phase}"
        old = self._old(name, source)
        if old is None:
            yet = " yet" if offer is None else ""
            self.waiting.append(Waiting(name, source, f"{words} {state}{yet}"))
            return
        self.wanted.append(old)
        ends = "until spec.adapters drops it" if offer is None else "until it has published anew"
        more = " any more" if offer is None else ""
        text = f"{words} {state}{more}; what it published before is served {ends}"
        self.kept.append(Kept(name, source, text))

    def _old(self, name: str, source: str) -> DesiredAdapter | None:
        old = self.before.get(name)
        return old if old is not None and old.source == source else None

    def _never(self, offer: Offer) -> Unservable | None:
        """Return why an object will never offer an adapter unless somebody mends it."""
        words = offer.source.replace("/", " ")
        if offer.kind is Kind.ADAPTERMERGE and offer.into != "Adapter":
            text = f"{words} makes a whole model (into: {offer.into}), not an adapter"
            hint = "Serve it as spec.model of an AdapterServer of its own, or merge into: Adapter under another name."
            return Unservable(FailureReason.ADAPTER_UNSUPPORTED, text, hint)
        if offer.phase not in FINAL_PHASES or (offer.uri is not None and offer.phase != Phase.FAILED.value):
            return None
        how = {Phase.FAILED.value: "has failed", Phase.STOPPED.value: "was stopped and has published no adapter"}
        does = how.get(offer.phase, "has succeeded and published no adapter")
        hint = f"Bring {words} to its success, as its status says, or name another one."
        return Unservable(FailureReason.ADAPTER_MISSING, f"{words} {does}", hint)

    # What the selector finds

    def select(self, offer: Offer) -> None:
        """Take an object that the selector found."""
        problem = self._not_for_us(offer)
        if problem is not None:
            self.skipped.append(Skipped(offer.source, problem))
            return
        if offer.name in self.taken:
            # Named and selected: it is one adapter.
            return
        self.taken[offer.name] = offer.source
        unfit = self._unfit(offer)
        if unfit is None:
            self._take(offer.name, offer)
        else:
            self._refuse(offer.name, offer, unfit)

    def _not_for_us(self, offer: Offer) -> str | None:
        if offer.kind is Kind.ADAPTERMERGE and offer.into != "Adapter":
            return f"is a whole model (into: {offer.into})"
        if base_problem(offer.served_name, self.base) is not None:
            return f"is for base {offer.served_name}"
        if offer.name == self.base:
            return "bears the name of the base model; spec.adapters can give it another"
        if len(offer.name) > LONGEST_NAME:
            return f"has a name of more than {LONGEST_NAME} characters; spec.adapters can give it another"
        holder = self.taken.get(offer.name)
        if holder is None or holder == offer.source:
            return None
        named = any(item.name == offer.name for item in self.spec.adapters or ())
        if named:
            return "spec.adapters has an entry of this name"
        return f"{holder} has the same name and is older"

    # Both

    def _take(self, name: str, offer: Offer) -> None:
        self.wanted.append(_desired(name, offer))
        if offer.method in _QUANTIZED:
            self.notes.append(Note(name, _INEXACT.format(offer.method)))

    def _unfit(self, offer: Offer) -> Unservable | None:
        return (
            base_problem(offer.served_name, self.base)
            or method_problem(offer.method)
            or rank_problem(offer.rank, self.spec.engine.max_rank)
        )

    def _refuse(self, name: str, offer: Offer, why: Unservable) -> None:
        content = (offer.uri, offer.manifest_sha256, offer.rank)
        self.refused.append(Refused(name, offer.source, *why, *content))


def _desired(name: str, offer: Offer) -> DesiredAdapter:
    return DesiredAdapter(
        name=name, uri=(offer.uri or "").rstrip("/"), manifest_sha256=offer.manifest_sha256, source=offer.source
    )


def _within_limits(work: _Work, max_loaded: int) -> Iterator[DesiredAdapter]:
    """Yield what fits, and refuse the rest: the newest of what the selector finds, unless it is served already."""
    left = min(max_loaded, MAX_ADAPTERS)
    full = too_many(left)
    room = MAX_BYTES
    for item in _by_right(work):
        room -= len(item.model_dump_json(by_alias=True, exclude_none=True).encode()) + 1
        if left > 0 and room >= 0:
            left -= 1
            yield item
            continue
        why = full if left <= 0 else _too_large()
        work.refused.append(Refused(item.name, item.source, *why, item.uri, item.manifest_sha256))


def _by_right(work: _Work) -> Iterable[DesiredAdapter]:
    """Return what is wanted, first what the spec names, then what is served already, then the rest."""
    named = {item.name for item in work.spec.adapters or ()}
    return sorted(work.wanted, key=lambda item: (item.name not in named, item.name not in work.before))


def _too_large() -> Unservable:
    text = f"the list of what the server serves is full: it holds {MAX_BYTES // 1024} KiB"
    return Unservable(FailureReason.TOO_MANY_ADAPTERS, text, ADVICE[FailureReason.TOO_MANY_ADAPTERS].hint)
