"""The adapters that an object waits for, each looked up by name."""

from __future__ import annotations

from collections.abc import Sequence

from tunery_api.inputs import LocalReference
from tunery_operator.kube.read import read_object
from tunery_operator.plan.inputs import AdapterInput, ReadyInput, lorajob_input, plain_input
from tunery_operator.plan.model import Key, Kind, Owner
from tunery_operator.reconcile.world import World


def read_input(world: World, owner: Owner, reference: LocalReference | None, uri: str | None) -> AdapterInput:
    """Return what a reference or a URI offers now, and be woken when the LoRAJob changes its phase."""
    if reference is None:
        return plain_input(uri or "")
    target = Key(Kind.LORAJOB, owner.key.namespace, reference.name)
    # First ask to be woken, then look: a change between the two must not be missed.
    world.cache.wait_for(target, owner.key)
    body = read_object(world.client, world.cache, target)
    return lorajob_input(reference.name, body, world.platform.settings.default_output_secret)


def all_ready(inputs: Sequence[AdapterInput]) -> list[ReadyInput] | None:
    """Return the inputs if each of them is ready, else None."""
    ready = [item for item in inputs if isinstance(item, ReadyInput)]
    return ready if len(ready) == len(inputs) else None
