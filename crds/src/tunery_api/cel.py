"""The rules that the API server itself checks, in CEL, beside the class that each hangs on."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunery_api.fields import ApiModel


class CelRule(NamedTuple):
    """One x-kubernetes-validations entry."""

    rule: str
    message: str


CEL_RULES: Final[dict[type[ApiModel], list[CelRule]]] = {}
"""By class; rules.py says the same in Python, since an object may predate a rule."""
