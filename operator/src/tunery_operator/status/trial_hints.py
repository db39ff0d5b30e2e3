"""What a hint says on top where it is about a trial or its sweep: what works there is done to the sweep."""

from __future__ import annotations

import re
from typing import Final

from tunery_api.kinds import Kind
from tunery_api.names import RETRY_ANNOTATION
from tunery_api.search.rows import OF_TRIAL
from tunery_operator.views.owner import Key, Owner

_CHANGES_SPEC: Final = re.compile(r"new job|\b(spec|resources|training|evaluation|dataset|lora)\.[a-z]|\bQLoRA\b")
"""In a hint that has somebody change a spec, or write another."""


def retry_command(key: Key) -> str:
    """Return what has a failed object tried again, in words."""
    return (
        f"Once that is done: kubectl annotate {key.kind.value.lower()} {key.name} -n {key.namespace} --overwrite "
        f'{RETRY_ANNOTATION}="$(date +%s)"'
    )


def of_waiting_trial(owner: Owner, hint: str) -> str:
    """Return what is to be added to the hint of a trial in whose way something stands."""
    if owner.sweep is None or not _CHANGES_SPEC.search(hint):
        return ""
    return (
        f" {owner.key.name} {OF_TRIAL} {owner.sweep}: what is changed in its LoRAJob is for this trial "
        f"alone.{new_sweep(owner.sweep, hint)}"
    )


def of_failed_trial(owner: Owner, hint: str, *, mendable: bool) -> str:
    """Return what is to be added to the hint of a trial that has failed."""
    key = Key(Kind.LORASWEEP, owner.key.namespace, owner.sweep or "")
    words = (
        f" {owner.key.name} {OF_TRIAL} {key.name}, which counts it as it has ended and goes on without "
        f"it: a retry of the trial is not followed.{new_sweep(key.name, hint)}"
    )
    return f"{words} Where LoRASweep {key.name} has failed, retry that. {retry_command(key)}" if mendable else words


def new_sweep(name: str, hint: str) -> str:
    """Return what is to be done where a hint has a spec changed: that of a sweep's trials is final."""
    if not _CHANGES_SPEC.search(hint):
        return ""
    return (
        f" Template and output of LoRASweep {name} are final: what is to change there needs a new sweep, which learns "
        f"from this one by warmStartFrom: [{{name: {name}}}] where model, data and evaluation stay the same."
    )
