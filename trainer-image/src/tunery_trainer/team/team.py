"""The processes that train one adapter together, one for each device, and what they do with one voice.

Each of them runs the same loop on its share of the rows. What has an effect outside, as a checkpoint or a report, the
leader alone does; whatever decides how the loop goes on is agreed on first, or the processes would wait for each other
in different places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # by a star

from tunery_trainer.process.place import Place

T = TypeVar("T")

_MEETING: Final = timedelta(minutes=15)
"""How long a process waits for the others to come, and to be connected: all of them were there just before (crew)."""
_LOADING: Final = timedelta(hours=2)
"""How long a process waits for another one in a collective: one may load, quantise or read a base for longer than the
others. One that is gone is told of by its parent or its connection, in seconds (crew)."""
STEPPING: Final = timedelta(minutes=30)
"""The same once they train, where all of them have as much to do: then nothing is wrong but what lies between them.

What one does for all takes 10 minutes at most: the last checkpoint's upload. What may take longer is done `patiently`.
"""


Packed = tuple[list[torch.nn.Parameter], torch.Tensor]
"""Parameters of a type, and the message of their gradients: which are there, then all of them."""


def pack(parameters: Iterable[torch.nn.Parameter]) -> list[Packed]:
    """Return the gradients of `parameters` as one message for all of a type; takes as much memory again."""
    kinds: dict[tuple[torch.dtype, torch.device], list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    packed: list[Packed] = []
    for alike in kinds.values():
        had = torch.tensor([float(each.grad is not None) for each in alike])
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in alike]
        packed.append((alike, torch.cat([had.to(parts[0]), *(part.flatten() for part in parts)])))
    return packed


@dataclass(frozen=True)
class Team:
    """One process's place among those that train together; by default it is alone.

    Every method but `share` and `hurry` is a collective: all processes have to call it, in the same order. The
    properties are not.
    """

    rank: int = 0
    """0 to world - 1, unique in the job."""
    world: int = 1
    """How many processes there are, one for each device."""
    nodes: int = 1
    sharded: bool = False
    """The base's weights are spread over the devices of a node: every forward pass is a collective, too."""

    @property
    def alone(self) -> bool:
        """Whether this process trains by itself."""
        return self.world == 1

    @property
    def leader(self) -> bool:
        """Whether this process speaks for all: it writes, uploads and reports."""
        return self.rank == 0

    @property
    def node(self) -> int:
        """The number of this process's node."""
        return self.rank // self._size

    @property
    def _size(self) -> int:
        return self.world // self.nodes

    def share(self, items: Sequence[T]) -> list[T]:
        """Return what of `items` this process does; those of all make the whole, none twice."""
        return list(items[self.rank :: self.world])

    def any(self, *flags: bool) -> list[bool]:
        """Return of each flag whether it is set in any process."""
        if self.alone:
            return list(flags)

        # On the CPU: a flag on the GPU would have the processor wait for all that the GPU has to do still.
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def nodes_with(self, flag: bool) -> list[int]:
        """Return the nodes of which a flag is set in any process, the lowest first."""
        return sorted({rank // self._size for rank, found in enumerate(self.gather(flag)) if found})

    def gather(self, mine: T) -> list[T]:
        """Return what each process has, in the order of their ranks."""
        if self.alone:
            return [mine]

        found: list[T] = [mine] * self.world
        dist.all_gather_object(found, mine)
        return found

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Make `tensor` the sum of those of all processes, in place, and return it."""
        if not self.alone:
            dist.all_reduce(tensor)
        return tensor

    def add_gradients(self, packed: Sequence[Packed]) -> None:
        """Make each gradient the sum of those of all processes; one that no process has stays None."""
        for alike, message in packed:
            self.add(message)
            present = message[: len(alike)].tolist()
            summed = torch.split(message[len(alike) :], [each.numel() for each in alike])
            for each, some, gradient in zip(alike, present, summed, strict=True):
                each.grad = gradient.view_as(each) if some else None

    def hurry(self) -> None:
        """Wait no longer than STEPPING for another process from here on. No collective."""
        self._wait_for(STEPPING)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Wait at the end of the body for a process that has far more to do in it than the others."""
        self._wait_for(_LOADING)
        yield
        self.any(False)
        self._wait_for(STEPPING)

    def _wait_for(self, patience: timedelta) -> None:
        if not self.alone:
            dist.set_timeout(patience)

    def share_from_leader(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give each tensor the values that it has in the leader, in place."""
        if self.alone:
            return

        for tensor in tensors:
            dist.broadcast(tensor, src=0)


ALONE = Team()
"""One process, as on one device."""


def join(place: Place, *, sharded: bool) -> Team:
    """Meet the other processes, if there are any; raises torch's errors where one of them does not come."""
    if place.world == 1:
        return Team(sharded=sharded)

    # Flags go by the CPU, gradients by where they are.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = TCPStore(place.master, place.port, place.world, is_master=place.rank == 0, timeout=_MEETING)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=_MEETING)
    # A GPU's are connected when first they sum, after each has loaded its base.
    store.set_timeout(_LOADING)
    dist.set_timeout(_LOADING)
    return Team(place.rank, place.world, place.nodes, sharded)
