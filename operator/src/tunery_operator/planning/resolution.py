"""Provide the resolved references of a server, its label selector, and the rules of its clients."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from tunery_api.adapterserver import AdapterSelector, AdapterServerSpec, LabelOperator, LabelRequirement
from tunery_api.errors import did_you_mean
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy
from tunery_api.serving import NO_KEYS, ClientRules, Desired

_NEAR_AMONG: Final = 200
"""The largest number of names that are compared to suggest one."""
MAX_BEFORE: Final = 8
"""Secrets whose rules are retained for older pods."""


class ApiKeyMounts(NamedTuple):
    """Which Secrets of API keys the pods of a server mount."""

    secrets: frozenset[str] = frozenset()
    """The Secrets of all pods, terminating ones included."""
    of_all: str | None = None
    """The Secret that all pods mount except terminating ones; None: a rollout is in progress."""


UNKNOWN_MOUNTS: Final = ApiKeyMounts()


class UnknownModel(NamedTuple):
    """A model that a client may request and that this server does not have now."""

    client: str
    model: str
    suggestion: str
    """`; did you mean …?` if there is a similar name; only for the first unknown model."""
    may_appear: bool
    """The selector may still find it."""


class PendingAdapter(NamedTuple):
    """A desired adapter that does not exist yet."""

    name: str
    source: str
    message: str
    absent: bool = False
    """The object that the spec names does not exist either: its name may be misspelt."""


class RejectedAdapter(NamedTuple):
    """A desired adapter that cannot be served; the version served before may still be."""

    name: str
    source: str
    reason: FailureReason
    message: str
    remedy: Remedy
    uri: str | None = None
    manifest_sha256: str | None = None
    rank: int | None = None


class SkippedObject(NamedTuple):
    """An object that the selector found and that is not for this server."""

    source: str
    reason: str


class RetainedAdapter(NamedTuple):
    """An adapter that is still served although its object no longer has it."""

    name: str
    source: str
    message: str


class DanglingAlias(NamedTuple):
    """A target of an alias that is no adapter of this server."""

    alias: str
    adapter: str


class AdapterNote(NamedTuple):
    """A remark about an adapter that is served."""

    name: str
    message: str


class Resolution(NamedTuple):
    """The result for every reference and for the selector."""

    desired: Desired
    """The revision is that of `before` if nothing changed, else one higher."""
    pending: tuple[PendingAdapter, ...] = ()
    rejected: tuple[RejectedAdapter, ...] = ()
    skipped: tuple[SkippedObject, ...] = ()
    retained: tuple[RetainedAdapter, ...] = ()
    notes: tuple[AdapterNote, ...] = ()
    dangling_aliases: tuple[DanglingAlias, ...] = ()
    unknown_models: tuple[UnknownModel, ...] = ()


def selects(selector: AdapterSelector, labels: Mapping[str, str]) -> bool:
    """Return whether the selector matches these labels."""
    named = all(labels.get(key) == value for key, value in (selector.match_labels or {}).items())
    return named and all(_holds(item, labels) for item in selector.match_expressions or ())


def _holds(item: LabelRequirement, labels: Mapping[str, str]) -> bool:
    present, values = item.key in labels, item.values or ()
    match item.operator:
        case LabelOperator.IN:
            return present and labels[item.key] in values
        case LabelOperator.NOT_IN:
            # As in Kubernetes: an object without the label matches.
            return not present or labels[item.key] not in values
        case LabelOperator.EXISTS:
            return present
        case LabelOperator.DOES_NOT_EXIST:
            return not present


def unknown_models(spec: AdapterServerSpec, known: Collection[str]) -> Iterator[UnknownModel]:
    """Yield the models that clients may request and that are neither in `known` nor an alias."""
    names = {*known, *(alias.name for alias in spec.aliases or ())}
    may_appear, suggest = spec.adapter_selector is not None, len(names) <= _NEAR_AMONG
    for client in spec.access.clients or ():
        for model in client.models:
            if model not in names:
                yield UnknownModel(
                    client.name, model, did_you_mean(model, sorted(names)) if suggest else "", may_appear
                )
                suggest = False


def api_keys(spec: AdapterServerSpec) -> str:
    """Return the Secret of the API keys; NO_KEYS: clients need no key."""
    return spec.access.api_keys_secret_ref.name if spec.access.api_keys_secret_ref is not None else NO_KEYS


def previous_rules(spec: AdapterServerSpec, before: Desired, mounts: ApiKeyMounts) -> Iterator[ClientRules]:
    """Yield the rules of the Secrets that older pods may mount, newest first.

    A pod mounts one Secret for its life, and `spec.access.clients` names keys of the current Secret: an older pod is
    limited to the clients that were listed with its own Secret.
    """
    found = [ClientRules(api_keys=before.api_keys, clients=before.clients)] if before.api_keys else []
    wanted = api_keys(spec)
    others = {rules.api_keys: rules for rules in (*reversed(before.before), *found) if rules.api_keys != wanted}
    names = [name for name in reversed(others) if name in mounts.secrets or mounts.of_all != wanted]
    # If there are too many, drop those that no known pod mounts, the oldest first.
    retained = sorted(names, key=lambda name: name not in mounts.secrets)[:MAX_BEFORE]
    yield from (others[name] for name in names if name in retained)
