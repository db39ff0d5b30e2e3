"""What a hint says on top where it is about a trial or its sweep: what works there is done to the sweep."""

from __future__ import annotations

import re
from typing import Final

from tunery_api.kinds import Kind
from tunery_api.names import RETRY_ANNOTATION
from tunery_api.runspec import Failure
from tunery_api.scrub import MAX_MESSAGE_BYTES, shorten
from tunery_operator.status.search import Search
from tunery_operator.views.owner import Key, Owner
from tunery_search.advice import NEW_SWEEP, learns, of_sweep
from tunery_search.trials import OF_TRIAL

_CHANGES_SPEC: Final = re.compile(r"new job|\b(spec|resources|training|evaluation|dataset|lora)\.[a-z]|\bQLoRA\b")
"""In a hint that has somebody change a spec, or write another."""


def retry_command(key: Key, when: str = "To retry") -> str:
    """Return what has a failed object tried again, in words."""
    return (
        f"{when}: kubectl annotate {key.kind.value.lower()} {key.name} -n {key.namespace} --overwrite "
        f'{RETRY_ANNOTATION}="$(date +%s)"'
    )


def joined(hint: str, more: str) -> str:
    """Return a hint and what is said on top, which is whole however long the hint is, each of whole sentences."""
    dot = "." if more and not hint.endswith((".", "!", "?", "…")) else ""
    return shorten(hint, MAX_MESSAGE_BYTES - len((dot + more).encode())) + dot + more


def of_waiting_trial(owner: Owner, hint: str) -> str:
    """Return what is to be added to the hint of a trial in whose way something stands."""
    if owner.sweep is None or not _CHANGES_SPEC.search(hint):
        return ""
    return (
        f" {owner.key.name} {OF_TRIAL} {owner.sweep}: what is changed in its LoRAJob is for this trial "
        f"alone.{_final(owner.sweep)}"
    )


def of_failed_trial(owner: Owner, hint: str, *, mendable: bool) -> str:
    """Return what is to be added to the hint of a trial that has failed."""
    key = Key(Kind.LORASWEEP, owner.key.namespace, owner.sweep or "")
    words = (
        f" {owner.key.name} {OF_TRIAL} {key.name}, which counts it as it has ended and goes on without "
        f"it: a retry of the trial is not followed.{_final(key.name) if NEW_SWEEP in hint else ''}"
    )
    when = f"Where LoRASweep {key.name} has failed, retry that once it is mended outside of the template"
    return f"{words} {retry_command(key, when)}" if mendable else words


def of_failed_sweep(key: Key, hint: str, search: Search, *, mendable: bool) -> str:
    """Return what is to be added to the hint of a sweep that has failed for its trials: how to go on, and where."""
    if NEW_SWEEP not in hint:
        return f" {retry_command(key)}" if mendable else ""
    measured = any(trial.row.value is not None for trial in search.trials)
    final = _final(key.name, warm=measured and learns(hint))
    return f"{final} {retry_command(key, 'Once it is mended without that')}" if mendable else final


def hint_of_sweep(failure: Failure, search: Search | None) -> str:
    """Return the hint of a sweep: what its trial or its own Job advises, as it is done to the sweep."""
    own = failure.hint
    if own is not None and (of_trial := own.find(f" {OF_TRIAL} ")) >= 0:
        # Behind it stands what is to be done about the trial.
        own = own[:of_trial].rpartition(" ")[0]
    searched = (each.path for each in search.spec.parameters) if search is not None else ()
    return of_sweep(str(failure.reason), own, searched)


def _final(name: str, *, warm: bool = False) -> str:
    more = f", with warmStartFrom: [{{name: {name}}}], which learns from its trials" if warm else ""
    return f" Template and output of LoRASweep {name} are final: apply the changed manifest under another name{more}."
