"""An optimizer step that several processes take together: what each adds to it, and what they agree on.

The Trainer of each process knows of no other: it sees its own share of the passes, and finds in the gradients, the loss
and the counts what all of them add up to. None of the libraries' own collectives runs, so that what is waited for, and
where, stands here (decision 89).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import torch

from tunery_common.errors import first_line
from tunery_trainer.losses.objectives import Batch, is_idle
from tunery_trainer.process.device import out_of_memory
from tunery_trainer.team.team import Team

T = TypeVar("T")

_CAUSE: Final = 200
"""Bytes of what an allocator says that the others are told."""


class SharedSteps:
    """Takes the passes of one process, and ends each step with the others."""

    def __init__(self, team: Team, parameters: Callable[[], Iterable[torch.nn.Parameter]]) -> None:
        """`parameters` returns those that are trained."""
        self._team = team
        self._parameters = parameters
        self._cause = ""
        self._loss: torch.Tensor | float = 0.0

    def begin(self) -> None:
        """Forget the step before, which may have been cut off."""
        self._cause, self._loss = "", 0.0

    def together(self, compute: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
        """Return the sum of what `compute` returns in each process.

        Raises MemoryError in every process where memory ran out in one of them.
        """
        if self._team.alone:
            return compute()
        found = self._guarded(compute)
        self._agree()
        return None if found is None else self._team.add(found)

    def take(self, batch: Batch, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the loss of a pass, detached.

        A pass that nobody counts is not taken, and none is once memory has run out in this step: that is told at its
        end, when the others listen. Where the base is sharded each pass is taken, as the others wait in it.
        """
        left_out = not self._team.sharded and (is_idle(batch) or bool(self._cause))
        loss = None if left_out else self._guarded(compute)
        taken = torch.zeros((), device=batch["labels"].device) if loss is None else loss
        self._loss = self._loss + taken
        return taken

    def end(self) -> torch.Tensor | float:
        """Sum the gradients of all processes after the last pass; return what the others add to the step's loss.

        Raises MemoryError in every process where memory ran out in one of them.
        """
        if self._team.alone:
            return 0.0
        self._agree()
        self._team.add_gradients(self._parameters())
        own = torch.as_tensor(self._loss)
        return self._team.add(own.clone()) - own

    def _guarded(self, compute: Callable[[], T | None]) -> T | None:
        """Return what `compute` returns; None where memory runs out, once that can be told to the others."""
        if self._team.alone or self._team.sharded:
            return compute()
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._cause = first_line(error, _CAUSE)
        return None

    def _agree(self) -> None:
        if self._team.any(bool(self._cause))[0]:
            raise MemoryError(next(cause for cause in self._team.gather(self._cause) if cause))
