"""The memory of a run in parts, and what follows from it: does it fit, and in batches of how many rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from tunery_api.measured import EstimateStatus, MemoryStatus

ALLOCATOR_SLACK: Final = 0.05
"""Share of its tensors that a caching allocator loses to fragments. Assumed before the published runs of
docs/estimate.md were looked at, which it fits."""
HEAP_SLACK: Final = 0.22
"""The same on a CPU, where glibc keeps freed blocks below 32 MiB with holes between them: the least whole percent
at which none of two thirds of the runs of docs/estimate.md is said to fit that would not. Where activations are
recomputed training has freed blocks given back (process/memory.py), and loses what a caching allocator does."""
SAFETY: Final = 0.06
"""Share of the device that is left free: what the published runs took more than was estimated, at most."""


class Line(NamedTuple):
    """Bytes that do not depend on the rows of a batch, and those of each row."""

    once: int
    per_row: int

    def of(self, rows: int) -> int:
        """Return the bytes of so many rows."""
        return self.once + rows * self.per_row


class Bent(NamedTuple):
    """The same where it grows more slowly from some number of rows on."""

    few: Line
    many: Line
    rows: int
    """Where the two lines meet."""

    def of(self, rows: int) -> int:
        """Return the bytes of so many rows."""
        return (self.few if rows <= self.rows else self.many).of(rows)


@dataclass(frozen=True)
class Activations:
    """What a forward and backward pass holds beside parameters, gradients and optimizer."""

    peak: Line | Bent
    kept: Line
    """What forward leaves for backward; the rest of the peak is what backward works with."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of the device while training, by what they hold."""

    weights: int
    """The frozen base, as it is stored there, or what of one that is spread is there at once."""
    adapter: int
    gradients: int
    """And the message by which several devices sum them."""
    optimizer: int
    """The optimizer's state, and what AdaLoRA remembers of each weight."""
    plain: Activations
    """Where all activations are kept."""
    recomputing: Activations
    """Where each layer keeps its input, and is computed again in backward."""
    overhead: int
    """What the process takes beside tensors."""
    length: int
    """Tokens of a row, of both answers of a pair."""
    batch_size: int
    gradient_checkpointing: bool
    on_gpu: bool = True

    @property
    def activations(self) -> Activations:
        """Those of this run."""
        return self.recomputing if self.gradient_checkpointing else self.plain

    @property
    def total(self) -> int:
        """All bytes, the allocator's slack included."""
        return self._with(self.batch_size)

    @property
    def slack(self) -> int:
        """Bytes that the allocator loses to fragments."""
        return self.total - self.overhead - self._tensors(self.batch_size)

    def of(self, batch_size: int, gradient_checkpointing: bool) -> MemoryEstimate:
        """Return the estimate of the same run with another batch, recomputing activations or not."""
        return replace(self, batch_size=batch_size, gradient_checkpointing=gradient_checkpointing)

    def fits(self, available: int) -> bool:
        """Say whether a device of `available` bytes holds it, with some of it left free."""
        return self.total <= usable(available)

    def largest_batch(self, available: int) -> int | None:
        """Return the largest batch size that fits into `available` bytes; None if not even one row does."""
        room = usable(available)
        if self._with(1) > room:
            return None
        fits, not_any_more = 1, 2
        while self._with(not_any_more) <= room:
            fits, not_any_more = not_any_more, 2 * not_any_more
        while not_any_more - fits > 1:
            middle = (fits + not_any_more) // 2
            fits, not_any_more = (middle, not_any_more) if self._with(middle) <= room else (fits, middle)
        return fits

    def share_of_length(self, available: int) -> float:
        """Return to which share of its length a batch of one row must shrink to fit; 0 where none would.

        A row of half the length takes at most half the memory.
        """
        room = usable(available) - self._with(0)
        return max(0.0, min(1.0, room / max(1, self._with(1) - self._with(0))))

    def to_status(self, available: int | None) -> MemoryStatus:
        """Return what status.memory shows."""
        return MemoryStatus(
            estimate_bytes=self.total,
            available_bytes=available,
            suggested_batch_size=self.largest_batch(available) if available else None,
        )

    def in_parts(self, steps: int | None = None, tokens: int | None = None) -> EstimateStatus:
        """Return what status.estimate shows, of a run of so many optimizer steps that sees so many tokens."""
        kept = self.activations.kept.of(self.batch_size)
        return EstimateStatus(
            weights_bytes=self.weights,
            adapter_bytes=self.adapter,
            gradients_bytes=self.gradients,
            optimizer_bytes=self.optimizer,
            activations_bytes=kept,
            workspace_bytes=max(0, self.activations.peak.of(self.batch_size) - kept),
            overhead_bytes=self.overhead,
            slack_bytes=self.slack,
            row_bytes=self._with(self.batch_size + 1) - self.total,
            steps=steps,
            tokens=tokens,
        )

    def _tensors(self, batch: int) -> int:
        fixed = self.weights + self.adapter + self.gradients + self.optimizer
        return fixed + self.activations.peak.of(batch)

    def _with(self, batch: int) -> int:
        lost = ALLOCATOR_SLACK if self.on_gpu or self.gradient_checkpointing else HEAP_SLACK
        return self.overhead + int(self._tensors(batch) * (1 + lost))


@dataclass(frozen=True)
class ContainerMemory:
    """A container's own memory, where a quantised base is spread: each process makes all of it there first."""

    needed: int
    """Bytes, of all processes together."""
    asked: int
    """Bytes of spec.resources.memory."""

    @property
    def fits(self) -> bool:
        """Whether it is enough: nothing of it is left free, as what is needed is there for a while only."""
        return self.needed <= self.asked

    @property
    def enough(self) -> str:
        """The change to the manifest by which it would fit, as a clause."""
        return f"raise spec.resources.memory to {-(-self.needed // 2**30)}Gi"


def usable(available: int) -> int:
    """Return how much of a device's memory an estimate may take."""
    return int(available * (1 - SAFETY))


def needed_for(total: int) -> int:
    """Return the memory of a device that an estimate of so many bytes fits."""
    return math.ceil(total / (1 - SAFETY)) + 1
