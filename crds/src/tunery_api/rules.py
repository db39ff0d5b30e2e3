"""What a spec must not say although the schema allows it: each rule one small function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.errors import FieldError
from tunery_api.lorajob import LoRAJobSpec

LORAJOB_RULES: Final[tuple[Callable[[LoRAJobSpec], Iterator[FieldError]], ...]] = ()
ADAPTERMERGE_RULES: Final[tuple[Callable[[AdapterMergeSpec], Iterator[FieldError]], ...]] = ()
