"""What a look at a job before it is applied has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunery_trainer.settings.memory import ContainerMemory, MemoryEstimate
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, RunSettings


@dataclass(frozen=True)
class TableLine:
    """One method in the table."""

    method: str
    quantization: str
    total_bytes: int
    """Of one row, with the whole base in each device, unless the manifest asks for FSDP."""
    largest: Mapping[str, int | None]
    """By kind of GPU the largest batch that fits; None: not even one row."""
    spread: frozenset[str] = frozenset()
    """Kinds of GPU that hold it only where the base is spread over those of a node, as Auto does."""


@dataclass(frozen=True)
class Estimated:
    """What was found."""

    model: str
    parameters: int
    settings: RunSettings
    targets: Sequence[str]
    """Modules that carry the adapter; none for prompts."""
    trained: int
    """Parameters that are trained."""
    left_out: str | None
    """What the job goes on from and could not be read, in a sentence; None: it was, or there is nothing such."""
    memory: MemoryEstimate
    """Of each device."""
    by_default: bool
    """Whether resources.memory is what it is where a manifest does not name it."""
    device: DeviceFacts
    """All devices that would train it."""
    rows: int | None
    """Of the data set; None where it was not read."""
    capped: bool
    """Whether a row is counted with as many tokens as maxLength allows."""
    packed: bool
    """Whether what is trained on are sequences of several rows."""
    steps: int | None
    """None where they depend on data that was not read."""
    tokens: int | None
    container: ContainerMemory | None
    """The container's own, where a quantised base is spread there; None: it holds no more than of any run."""
    change: str | None
    """The change to the manifest by which a job would fit that does not, as a clause; None: none needed, or known."""
    table: Sequence[TableLine]

    @property
    def available(self) -> int | None:
        """Bytes of each GPU, or of resources.memory; None: not known."""
        return self.device.memory_bytes

    @property
    def fits(self) -> bool:
        """Whether it fits into the memory of the devices, where that is known, and of their container."""
        known = self.available is not None
        return not (known and not self.memory.fits(self.available or 0)) and (not self.container or self.container.fits)

    @property
    def changes(self) -> Sequence[str]:
        """The changes to the manifest by which a job would fit that does not, as clauses: each has to be made."""
        container = [self.container.enough] if self.container and not self.container.fits else []
        return [*([self.change] if self.change else []), *container]

    @property
    def on_gpu(self) -> bool:
        """Whether it would train on GPUs."""
        return self.device.kind is DeviceKind.CUDA

    def seconds(self, rate: float | None) -> float | None:
        """Return how long training takes at so many tokens a second of all devices together.

        None where that or the tokens are not known.
        """
        return None if self.tokens is None or rate is None else self.tokens / rate
