"""State why an AdapterServer cannot serve an adapter, for the operator and for a replica."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunery_api.adapterserver import ENGINE_RANKS
from tunery_api.methods import Method
from tunery_api.reasons import FailureReason
from tunery_api.remedies import INTO_MODEL, Remedy, edit, retry


class Unservable(NamedTuple):
    """Why an adapter cannot be served, and the remedy."""

    reason: FailureReason
    message: str
    remedy: Remedy


_FEWER_KEPT: Final = edit(
    "Raise engine.maxLoadedAdapters of the server, or remove keepLoaded from some of its adapters",
    "engine.maxLoadedAdapters",
)
LINEAR: Final = retry("Convert it to a LoRA with an AdapterMerge of it alone and method: Linear, and serve that")
PEFT_ONLY: Final = retry("Train a LoRA instead: only PEFT runs prompt and prefix tuning")
_REMEDIES: Final = {
    Method.DORA.value: INTO_MODEL,
    Method.QDORA.value: INTO_MODEL,
    Method.IA3.value: INTO_MODEL,
    Method.ADALORA.value: LINEAR,
    Method.PREFIX_TUNING.value: PEFT_ONLY,
    Method.PROMPT_TUNING.value: PEFT_ONLY,
}


def method_problem(method: str | None) -> Unservable | None:
    """Return why what a method trains cannot be served; None where it can, or where nothing is known of the method."""
    if method not in _REMEDIES:
        return None
    return Unservable(
        FailureReason.ADAPTER_UNSUPPORTED,
        f"its method is {method}; only LoRA is served",
        _REMEDIES[method],
    )


def rank_problem(rank: int | None, max_rank: int, slot_bytes: int | None = None) -> Unservable | None:
    """Return why an adapter of this rank cannot be served; None where it can, or where its rank is not known.

    `slot_bytes`, where they are known, are what one slot takes for each of its ranks.
    """
    if rank is None or rank <= max_rank:
        return None
    message = f"its rank is {rank}, engine.maxRank is {max_rank}"
    enough = next((known for known in ENGINE_RANKS if known >= rank), None)
    if enough is None:
        text = f"{message}, and none above {ENGINE_RANKS[-1]} is served"
        return Unservable(FailureReason.RANK_TOO_HIGH, text, INTO_MODEL)
    memory = f"then takes {slot_bytes * enough / 2**20:,.0f} MiB" if slot_bytes else "takes more memory"
    raised = f"Raise engine.maxRank to {enough} (replicas are replaced one by one, and each slot {memory})"
    return Unservable(
        FailureReason.RANK_TOO_HIGH, message, edit(f"{raised}, or train an adapter of a lower rank", "engine.maxRank")
    )


def base_problem(served_name: str | None, base: str) -> Unservable | None:
    """Return why an adapter for another base model cannot be served; None where it can, or its base is not known."""
    if served_name is None or served_name == base:
        return None
    return Unservable(
        FailureReason.BASE_MISMATCH,
        f"it was trained on {served_name}, and the model of this server is {base}",
        retry(
            f"Serve it from an AdapterServer of {served_name}; if {base} is the same model, recreate this server with "
            f"model.servedName: {served_name}"
        ),
    )


def too_many(max_loaded: int) -> Unservable:
    """Return why an adapter cannot stay loaded that would be one more than the engine holds."""
    return Unservable(
        FailureReason.TOO_MANY_ADAPTERS,
        f"engine.maxLoadedAdapters is {max_loaded}, and as many others before it have keepLoaded",
        _FEWER_KEPT,
    )


def none_left(max_loaded: int) -> Unservable:
    """Return why an adapter could never be loaded: others that stay loaded take all the room that there is."""
    return Unservable(
        FailureReason.TOO_MANY_ADAPTERS,
        f"engine.maxLoadedAdapters is {max_loaded}, and adapters with keepLoaded take all of it",
        _FEWER_KEPT,
    )
