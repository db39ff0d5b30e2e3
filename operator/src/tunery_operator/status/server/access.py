"""Who may ask: what is wrong with the rules of the spec, and which replicas still answer under those of before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tunery_api.failures import Failure
from tunery_api.remedies import edit
from tunery_api.scrub import MAX_MESSAGE_BYTES, scrub, shorten
from tunery_api.serving import NO_KEYS
from tunery_operator.planning.resolution import NoModel
from tunery_operator.status.server.replicas import Replica
from tunery_operator.status.server.snapshot import ServerSnapshot

NO_MODELS: Final = edit(
    "Correct access.clients, or name that adapter in adapters; that client gets 404 for it",
    "access.clients",
    "adapters",
)


def no_models_text(found: Sequence[NoModel]) -> str:
    """Return which models clients may ask for that are none of the server's."""
    first, more = found[0], len(found) - 1
    what = "no model of this server now" if first.may_come else "neither base, adapter nor alias of this server"
    text = f"spec.access.clients lets {first.client} ask for {first.model}, which is {what}{first.near}"
    leads = "1 more name leads" if more == 1 else f"{more} more names lead"
    return text if not more else f"{text}{'' if first.near else ';'} {leads} nowhere"


def old_rules(snapshot: ServerSnapshot, replicas: Sequence[Replica]) -> str:
    """Return, to be put behind a sentence, how many replicas still answer under other rules; empty: none is known to.

    Rules of keys are a pod's for its life: with others it is replaced, and answers until then.
    """
    if snapshot.spec is None:
        return ""
    wanted = snapshot.spec.access.api_keys_secret_ref
    rules = wanted.name if wanted is not None else NO_KEYS
    asking = [replica.state.api_keys for replica in replicas if replica.ready and replica.state is not None]
    old = [each for each in asking if each is not None and each != rules]
    if not old:
        return ""
    still = "1 replica still answers" if len(old) == 1 else f"{len(old)} replicas still answer"
    how = "without asking for a key" if old[0] == NO_KEYS else f"by the keys of Secret {old[0]}"
    return scrub(f"; until replicas with the new spec.access are ready, {still} under the rules of before: {how}")


def with_suffix(found: Failure | None, text: str) -> Failure | None:
    """Return a failure with more text at the end of its message."""
    if found is None or not text:
        return found
    return found.model_copy(update={"message": shorten(found.message, MAX_MESSAGE_BYTES - len(text.encode())) + text})
