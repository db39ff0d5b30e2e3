"""Which cases of a table `make test` takes, and which are left to `make test-unit-long`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def long_but(cases: Iterable[Any], *kept: str) -> list[Any]:
    """Return the cases with all but those named marked as long; a name is the id that pytest gives a case of texts.

    Raises ValueError where one of `kept` is no case, or two cases have one name: one of them would never run.
    """
    table = list(cases)
    named = {_name(case): case for case in table}
    if len(named) < len(table):
        raise ValueError("two cases have the same name")
    if strange := set(kept) - named.keys():
        raise ValueError(f"no case is named {sorted(strange)}")
    return [case if name in kept else _long(name, case) for name, case in named.items()]


def _name(case: Any) -> str:
    if hasattr(case, "marks"):
        return str(case.id)
    return "-".join(map(str, case)) if isinstance(case, tuple) else str(case)


def _long(name: str, case: Any) -> Any:
    values = case.values if hasattr(case, "marks") else case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, id=name, marks=pytest.mark.long)
