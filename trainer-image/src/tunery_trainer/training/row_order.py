"""The order in which optimizer steps take the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from tunery_trainer.settings.types import TrainingSettings
from tunery_trainer.team.team import Team


def order_of(rows: Dataset, training: TrainingSettings) -> Any:
    """Return the sampler of `rows`: seed and epoch alone decide."""
    if not training.group_by_length:
        # What accelerate makes of transformers' RandomSampler; from here a row's turn can be told before training.
        return SeedableRandomSampler(rows, data_seed=training.seed)
    columns = [name for name in ("input_ids", "rejected_input_ids") if name in rows.column_names]
    lengths = [max(map(len, ids)) for ids in zip(*(rows[name] for name in columns), strict=True)]
    return ByLength(lengths, training.batch_size * training.gradient_accumulation, training.seed)


def reached(rows: Dataset, training: TrainingSettings, steps: int) -> list[int]:
    """Return the numbers of the rows that `steps` optimizer steps take."""
    return list(islice(order_of(rows, training), steps * training.batch_size * training.gradient_accumulation))


class ByLength(LengthGroupedSampler):  # type: ignore[misc]  # transformers is not typed for us
    """Puts rows of similar length into a step, in an order that seed and epoch alone decide.

    transformers' own draws from the process's random numbers, so that a resume saw other rows than were left.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        super().__init__(rows_per_step, lengths=list(lengths), generator=torch.Generator())
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this pass over the data; accelerate calls it."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the rows."""
        self.generator.manual_seed(self._seed + self._epoch)
        return iter(list(super().__iter__()))


class Share(Sampler[int]):
    """The rows of one process of a team: every `world`th forward pass of the order that one process alone would take.

    So an optimizer step has the same rows whatever the number of devices. Where the passes of an epoch cannot be dealt
    out evenly, the last ones get a row more that nobody counts: `idles` tells so.
    """

    def __init__(self, order: Any, batch_size: int, team: Team) -> None:
        self._order = order
        self._batch_size = batch_size
        self._team = team
        self._all = passes = -(-len(order) // batch_size)
        self._passes = -(-passes // team.world)
        mine = len(range(team.rank, passes, team.world))
        self.idles = mine < self._passes
        """Whether the last pass of an epoch is one that nobody counts."""
        ends_short = mine > 0 and (passes - 1) % team.world == team.rank
        rest = len(order) - (passes - 1) * batch_size
        self._rows = mine * batch_size - (batch_size - rest if ends_short else 0) + self.idles

    def __len__(self) -> int:
        """Return the rows of this process in an epoch."""
        return self._rows

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this pass over the data; accelerate calls it."""
        self._order.set_epoch(epoch)

    def epoch_of_all(self, epoch: float) -> float:
        """Return how often the rows were passed by all processes, `epoch` being counted by the passes of this one."""
        whole = math.floor(epoch)
        mine = round((epoch - whole) * self._passes)
        return whole + min(mine * self._team.world, self._all) / self._all

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the rows."""
        rows, size, team = list(self._order), self._batch_size, self._team
        for first in range(team.rank * size, len(rows), team.world * size):
            yield from rows[first : first + size]
        if self.idles:
            yield rows[0]
