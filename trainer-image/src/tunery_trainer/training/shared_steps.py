"""An optimizer step that several processes take together: what each adds to it, and what they agree on.

The Trainer of each process knows of no other: it sees its own share of the passes, and finds in the gradients, the loss
and the counts what all of them add up to. None of the libraries' own collectives runs, so that what is waited for, and
where, stands here (decision 89).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from tunery_common.errors import first_line
from tunery_trainer.losses.objectives import Batch, is_idle
from tunery_trainer.process.device import MAX_CAUSE, out_of_memory
from tunery_trainer.team.team import Team, pack

T = TypeVar("T")


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

    def take(self, batch: Batch, compute: Callable[[], torch.Tensor]) -> None:
        """Do a pass.

        One that nobody counts is not done, and none is once memory has run out in this step: that is told at its end,
        when the others listen. Where the base is sharded each pass is done, as the others wait in it.
        """
        if self._team.sharded or not (is_idle(batch) or self._cause):
            loss = self._guarded(compute)
            self._loss = self._loss + (0.0 if loss is None else loss)

    def end(self, device: torch.device) -> torch.Tensor:
        """Sum the gradients of all processes after the last pass; return the loss of the step, the same in each.

        Raises MemoryError in every process where memory ran out in one of them.
        """
        packed = self._guarded(lambda: pack(self._parameters()))  # the others wait in none of it yet
        self._agree()
        self._team.add_gradients(packed or ())
        return self._team.add(torch.as_tensor(self._loss, device=device).clone())

    def _guarded(self, compute: Callable[[], T | None]) -> T | None:
        """Return what `compute` returns; None where memory runs out, once that can be told to the others."""
        if self._team.alone or self._team.sharded:
            return compute()
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._cause = first_line(error, MAX_CAUSE)
        return None

    def _agree(self) -> None:
        if self._team.any(bool(self._cause))[0]:
            raise MemoryError(next(cause for cause in self._team.gather(self._cause) if cause))
