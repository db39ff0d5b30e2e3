"""Merging on the GPU."""

from __future__ import annotations

from typing import Final

from gpu.verdicts import Case, Check, Machine, Outcome, Verdict


def _on_the_gpu(machine: Machine) -> Outcome:
    return Outcome(
        Verdict.NOT_OFFERED, words="an AdapterMerge computes on the CPU, tensor by tensor as it streams the files"
    )


CHECK: Final = Check("a merge into a base on the GPU", lambda machine: {"into a base": Case(_on_the_gpu)})
