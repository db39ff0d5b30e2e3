"""Every method and quantisation in float16."""

from __future__ import annotations

from functools import partial
from typing import Final

from gpu.steps import cases
from gpu.verdicts import Check

CHECK: Final = Check(
    "a few optimizer steps of every method and quantisation in float16", partial(cases, precision="Float16")
)
