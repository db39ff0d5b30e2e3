"""Why an adapter cannot be served, in the same words whether the operator or a replica finds it."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunery_api.adapterserver import ENGINE_RANKS
from tunery_api.methods import Method
from tunery_api.reasons import ADVICE, FailureReason


class Unservable(NamedTuple):
    """Why an adapter cannot be served, and what to do."""

    reason: FailureReason
    message: str
    hint: str


_INTO_MODEL: Final = ADVICE[FailureReason.ADAPTER_UNSUPPORTED].hint
_INTO_ADAPTER: Final = (
    "Merge it alone with an AdapterMerge of method Linear into: Adapter, which makes a LoRA of it, and serve that."
)
_NEITHER: Final = "Load it with PEFT beside its base model, or train a LoRA for the server."
_HINTS: Final = {
    Method.DORA.value: _INTO_MODEL,
    Method.QDORA.value: _INTO_MODEL,
    Method.IA3.value: _INTO_MODEL,
    Method.ADALORA.value: _INTO_ADAPTER,
    Method.PREFIX_TUNING.value: _NEITHER,
    Method.PROMPT_TUNING.value: _NEITHER,
}


def method_problem(method: str | None) -> Unservable | None:
    """Return why what a method trains cannot be served; None where it can, or where nothing is known of the method."""
    if method not in _HINTS:
        return None
    return Unservable(
        FailureReason.ADAPTER_UNSUPPORTED,
        f"it was trained by {method}, and the engine takes LoRA adapters only",
        _HINTS[method],
    )


def rank_problem(rank: int | None, max_rank: int) -> Unservable | None:
    """Return why an adapter of this rank cannot be served; None where it can, or where its rank is not known."""
    if rank is None or rank <= max_rank:
        return None
    return Unservable(
        FailureReason.RANK_TOO_HIGH,
        f"its rank is {rank}, and spec.engine.maxRank of the server is {max_rank}",
        _rank_hint(rank),
    )


def _rank_hint(rank: int) -> str:
    enough = next((known for known in ENGINE_RANKS if known >= rank), None)
    if enough is None:
        return f"No engine takes more than {ENGINE_RANKS[-1]}: {_INTO_MODEL[0].lower()}{_INTO_MODEL[1:]}"
    return (
        f"Set spec.engine.maxRank of the server to {enough}: its replicas are replaced one by one, and each of "
        "maxAdaptersInBatch takes more memory; or make an adapter of a lower rank."
    )


def base_problem(served_name: str | None, base: str) -> Unservable | None:
    """Return why an adapter for another base model cannot be served; None where it can, or its base is not known."""
    if served_name is None or served_name == base:
        return None
    return Unservable(
        FailureReason.BASE_MISMATCH,
        f"it is for the base model {served_name}, and this server has {base}",
        ADVICE[FailureReason.BASE_MISMATCH].hint,
    )


def too_many(max_loaded: int) -> Unservable:
    """Return why an adapter is left out that would be one more than the engine may hold."""
    return Unservable(
        FailureReason.TOO_MANY_ADAPTERS,
        f"the server has {max_loaded} others to serve, which is all that spec.engine.maxLoadedAdapters allows",
        ADVICE[FailureReason.TOO_MANY_ADAPTERS].hint,
    )
