"""Which LoRAJobs are a sweep's own trials: those of its rows, and those that it may just have made."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tunery_api.kinds import Kind
from tunery_api.lorasweep import MAX_PARALLEL_TRIALS, LoRASweepSpec
from tunery_api.names import MANAGED_BY, MANAGED_BY_LABEL, SWEEP_LABEL, TRIAL_LABEL, label_value
from tunery_api.search.rows import number_of
from tunery_api.sweepstatus import FINAL_TRIAL_STATES, TrialStatus
from tunery_operator.kube import apply
from tunery_operator.kube.client import Json
from tunery_operator.kube.rbac import LORAJOBS
from tunery_operator.manifests.metadata import owner_reference
from tunery_operator.plan.lorasweep import trial_name
from tunery_operator.reconcile.found_object import FoundObject
from tunery_operator.reconcile.services import Services
from tunery_operator.views.owner import Key

logger: Final = logging.getLogger(__name__)


class OwnTrials(NamedTuple):
    """The LoRAJobs of a sweep."""

    children: Mapping[int, Json]
    """Of the trials that are not final in the status, by number."""
    strangers: tuple[str, ...]
    """Names of those that only name it as their owner."""


def own_trials(services: Services, obj: FoundObject, spec: LoRASweepSpec, rows: Sequence[TrialStatus]) -> OwnTrials:
    """Return the LoRAJobs of the trials that are not final in the status; raises StaleObject, Rejected, ApiFailure.

    From the cache while they go on. One that has ended is read once: then its row is final. One that the cache does not
    know is asked for: a trial that is taken for deleted would never count. Each is known by its name: anybody may
    change a label.
    """
    final = {row.name for row in rows if row.state in FINAL_TRIAL_STATES}
    uids = {row.name: row.uid for row in rows}
    numbers = {**_names_to_come(obj, spec, rows), **{row.name: row.number for row in rows}}
    owned = services.cache.trials(obj.owner.uid)
    found = {}
    for name in sorted(((owned & numbers.keys()) | uids.keys()) - final):
        body = _child(services, obj, name, uids.get(name))
        if body is not None:
            found[numbers[name]] = numbered(body, numbers[name])
    return OwnTrials(found, tuple(sorted(owned - numbers.keys())))


def _names_to_come(obj: FoundObject, spec: LoRASweepSpec, rows: Sequence[TrialStatus]) -> dict[str, int]:
    """Return the numbers, by name, of trials that may have been made since the status was written."""
    sweep, first = obj.owner.key.name, max((row.number for row in rows), default=-1) + 1
    names = {trial_name(sweep, number): number for number in range(first, first + MAX_PARALLEL_TRIALS)}
    return {**names, trial_name(sweep, first, final=True): first} if spec.final is not None else names


def numbered(body: Json, number: int) -> Json:
    """Return a LoRAJob with the label of its number."""
    if number_of(body) == number:
        return body
    meta = body["metadata"]
    return {**body, "metadata": {**meta, "labels": {**(meta.get("labels") or {}), TRIAL_LABEL: f"{number:03d}"}}}


def _child(services: Services, obj: FoundObject, name: str, uid: str | None) -> Json | None:
    """Return the LoRAJob of a trial; None where there is none that is ours."""
    key = Key(Kind.LORAJOB, obj.owner.key.namespace, name)
    body = None if services.cache.is_stale(obj.owner.key) else services.cache.body(key)
    if body is None or not apply.is_child(body, obj.owner):
        body = services.client.get(LORAJOBS.get, key.namespace, name)
    if body is None or apply.is_child(body, obj.owner):
        return body
    return _taken_back(services, obj, body) if body["metadata"]["uid"] == uid and _is_alone(obj, body) else None


def _is_alone(obj: FoundObject, body: Json) -> bool:
    """Tell whether a LoRAJob has no owner, and its labels say that it was made for the sweep."""
    meta = body["metadata"]
    labels = meta.get("labels") or {}
    ours = {MANAGED_BY_LABEL: MANAGED_BY, SWEEP_LABEL: label_value(obj.owner.key.name)}
    return not meta.get("ownerReferences") and ours.items() <= labels.items() and number_of(body) is not None


def _taken_back(services: Services, obj: FoundObject, body: Json) -> Json:
    """Return a trial whose owner reference somebody took away, with it: alone it would train on, and nobody look."""
    owner = obj.owner
    logger.info(
        "LoRAJob %s, a trial of %s, has no owner any more: it is taken back", body["metadata"]["name"], owner.key
    )
    change = {"metadata": {"ownerReferences": [owner_reference(owner)]}}
    body = apply.patch_child(services.client, LORAJOBS, body, change)
    services.cache.owe(services.cache.see_owner(Kind.LORAJOB, body) - {owner.key})
    return body
