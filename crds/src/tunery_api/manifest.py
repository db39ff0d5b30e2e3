"""Define manifest.json: the files of a published folder with their digests, and their lineage."""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator
from pydantic.alias_generators import to_camel

from tunery_api.findings import CheckStatus, FindingStatus
from tunery_api.measured import DatasetStatus
from tunery_api.runspec import RunIdentity
from tunery_api.status import ResolvedStatus, VerificationStatus

MANIFEST_NAME: Final = "manifest.json"
"""Written last; a prefix without it is not a published result."""
CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
"""The two files of an adapter, as PEFT names them."""
MANIFEST_FORMAT: Final = "tunery.dev/manifest/v1"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    """Frozen, camelCase in JSON; unknown fields of later versions are read over."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class FileRecord(_Record):
    """One file of the folder."""

    sha256: Sha256
    size: int = Field(ge=0)
    """Bytes."""


class SourceRecord(_Record):
    """A base model or a data set, as it was used."""

    uri: str
    revision: str | None = None
    """The commit, for hf:// sources."""
    digest: str | None = None
    """SHA-256 of the content, where there is no commit."""


class MergeInputRecord(_Record):
    """One adapter that went into a merge, or that was trained on."""

    uri: str
    manifest_sha256: Sha256 | None = None
    origin: str | None = None
    """`Unverified` where it was made elsewhere: its files are those below, and nobody vouches for them."""
    sha256: Sha256 | None = None
    """Of an adapter made elsewhere: over the lines that `sha256sum` prints for its files."""
    files: dict[str, FileRecord] | None = None
    """Of an adapter made elsewhere: what was read."""
    revision: str | None = None
    """The commit, for hf:// adapters."""
    rank: int | None = None
    weight: str | None = None
    eval_loss: float | None = None
    """On the data set that the merge was measured on."""
    rejected: str | None = None
    """Why that adapter had been rejected, where it had been."""

    @property
    def digest(self) -> str | None:
        """What `sha256` of a reference to it would be."""
        return self.sha256 or self.manifest_sha256


class CheckpointRecord(_Record):
    """A checkpoint of another run that this one went on from."""

    uri: str
    step: int
    run: RunIdentity


class StopRecord(_Record):
    """That a run was stopped before its last step, and what was published is what it had by then."""

    after_step: int
    """Optimizer steps that were taken; Lineage.step says whose weights these are."""
    of_steps: int | None = None
    """Those that were planned."""
    why: str

    def __str__(self) -> str:
        """As people read it."""
        planned = f" of {self.of_steps}" if self.of_steps else ""
        return f"stopped after step {self.after_step}{planned}: {self.why}"


_FOUR_BITS: Final = ("NF4", "FP4")
"""What can be quantised twice: its constants, too."""


class QuantizationRecord(_Record):
    """How the frozen base was quantised in training, in the API's words or in those of a later version."""

    type: str
    double_quant: bool | None = None
    loaded_as: str | None = None
    """The type that the weights were loaded in before they were quantised."""

    def __str__(self) -> str:
        """As people read it, such as NF4 with double quantisation, loaded as BFloat16."""
        text = self.type
        if self.double_quant is not None and self.type in _FOUR_BITS:
            text += " with double quantisation" if self.double_quant else " without double quantisation"
        return f"{text}, loaded as {self.loaded_as}" if self.loaded_as else text


class EvaluationRecord(_Record):
    """The loss on the held-out rows after an optimizer step."""

    step: int
    loss: float


class SweepRecord(_Record):
    """The sweep that found the adapter."""

    name: str
    uid: str
    trial: int
    """The number of the one whose adapter it is."""
    trials: int
    """How many there were."""
    seed: int
    sampler: str


class AnsweredByRecord(_Record):
    """What answered lines of a batch."""

    name: str
    manifest_sha256: Sha256 | None = None
    """Of the adapter; None: the base model."""
    lines: int


class Lineage(_Record):
    """Everything needed to say where the result came from, and to make it again."""

    model: SourceRecord | None = None
    dataset: SourceRecord | None = None
    """What was trained on; for a merge what it was measured on."""
    served_name: str | None = None
    """The base model's name in adapter_config.json."""
    loader: str | None = None
    """The auto class of transformers that loads the base model; None: AutoModelForCausalLM."""
    method: str | None = None
    rank: int | None = None
    hyperparameters: dict[str, JsonValue] = Field(default_factory=dict)
    """The resolved values, by field of the spec, for people to read."""
    quantization: QuantizationRecord | None = None
    """Of the base that the adapter was trained on; None where it was not quantised."""
    steps: int | None = None
    """Optimizer steps that were taken."""
    epochs: float | None = None
    """How often they saw each training row, on average."""
    step: int | None = None
    """The step whose weights these are: early stopping keeps the best ones, and publishes those."""
    seed: int | None = None
    image: str | None = None
    """The trainer image, with its digest where it is known."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Library versions, by distribution name."""
    device: str | None = None
    """The GPU's name, or `cpu`; of a LoRAJob `resolved.device` says more."""
    peak_bytes: int | None = None
    """The most memory that the attempt which ended the run held, as status.memory.peakBytes tells it."""
    metrics: dict[str, float] = Field(default_factory=dict)
    evaluations: list[EvaluationRecord] = Field(default_factory=list)
    """Those while training and at its end, oldest first; of very many the newest."""
    answered_by: list[AnsweredByRecord] = Field(default_factory=list)
    """Of a batch: how many lines each version of each adapter answered."""
    server: str | None = None
    """Of a batch: namespace and name of the AdapterServer."""
    continued_from: MergeInputRecord | None = None
    resumed_from: list[CheckpointRecord] = Field(default_factory=list)
    """The checkpoints of other runs that it went on from, the oldest first."""
    stopped: StopRecord | None = None
    """None: training came to its end."""
    rejected: str | None = None
    """Why it was not published at the output, but beside it; None for every result that is one."""
    inputs: list[MergeInputRecord] = Field(default_factory=list)
    """The adapters of a merge, in order."""
    sweep: SweepRecord | None = None
    """None: no sweep published it."""
    verification: VerificationStatus | None = None
    found: DatasetStatus | None = None
    """What was found in the data set, as status.dataset tells it."""
    resolved: ResolvedStatus | None = None
    """Each setting and where it came from, as status.resolved tells it."""
    findings: list[FindingStatus] | None = None
    """What the run found out about itself, as status.findings tells it; None: nobody looked."""
    checks: list[CheckStatus] | None = None
    """The checklist, as status.checks tells it."""

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        """JSON has no NaN and no infinity: such a metric is left out."""
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


class Manifest(_Record):
    """The content of manifest.json."""

    format: Literal["tunery.dev/manifest/v1"] = MANIFEST_FORMAT
    created: str
    """When it was written, RFC 3339 in UTC."""
    run: RunIdentity
    files: dict[str, FileRecord] = Field(min_length=1)
    """By path relative to the prefix; every file but the manifest itself."""
    lineage: Lineage

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(record.size for record in self.files.values())

    def to_json(self) -> bytes:
        """Return the bytes that are stored: indented, for people."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode() + b"\n"
