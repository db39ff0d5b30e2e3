"""Whether an AdapterServer could serve what comes of a run: told as soon as its method is known, before it trains."""

from __future__ import annotations

from typing import Final

from tunery_api.adapterserver import ENGINE_RANKS
from tunery_api.unservable import method_problem, rank_problem
from tunery_operator.status.builder import StatusBuilder

_FIELD: Final = "unservable"


def tell_unservable(draft: StatusBuilder) -> None:
    """Say beside the settings and beside the result why no server can serve it; nothing where nothing says so."""
    method = (draft.fields.get("resolved") or {}).get("method")
    for name in ("resolved", "adapter"):
        block = draft.fields.get(name)
        if block is None:
            continue
        problem = method_problem(method) or rank_problem(block.get("rank"), ENGINE_RANKS[-1])
        others = {field: value for field, value in block.items() if field != _FIELD}
        text = None if problem is None else f"{problem.message}. {problem.remedy.text}."
        draft.fields[name] = others if text is None else {**others, _FIELD: text}
