"""Which rows each of several processes takes: those of one process, each once an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.utils.data import SequentialSampler

from tunery_trainer.team.team import Team
from tunery_trainer.training.row_order import Share


class _Order(SequentialSampler):
    """The rows in turn, and another turn in each epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rows = list(super().__iter__())
        yield from rows[self.epoch :] + rows[: self.epoch]


def passes(rows: list[int], size: int) -> list[list[int]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 7, 16, 61, 201])
def test_each_row_is_taken_once_by_one_process_in_the_pass_of_one_process(
    count: int, size: int, world: int, epoch: int
) -> None:
    order = _Order(range(count))
    shares = [Share(order, size, Team(rank, world)) for rank in range(world)]
    for share in shares:
        share.set_epoch(epoch)
    taken = [list(share) for share in shares]
    assert [len(each) for each in taken] == [len(share) for share in shares]
    own = [passes(each, size) for each in taken]
    assert len({len(each) for each in own}) == 1, "all take as many"
    counted = [each[:-1] if share.idles else each for each, share in zip(own, shares, strict=True)]
    in_turn = [each[turn] for turn in range(max(map(len, counted))) for each in counted if turn < len(each)]
    assert in_turn == passes(list(order), size)
