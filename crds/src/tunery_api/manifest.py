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
"""The last file to be written: a folder without it isn't a published result."""
CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
"""The files of an adapter in PEFT's format."""
MANIFEST_FORMAT: Final = "tunery.dev/manifest/v1"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    """A frozen record, camelCase in JSON; it ignores unknown fields of later versions."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class FileRecord(_Record):
    """One file of the folder."""

    sha256: Sha256
    size: int = Field(ge=0)
    """In bytes."""


class SourceRecord(_Record):
    """The base model or data set that was used."""

    uri: str
    revision: str | None = None
    """The commit, for hf:// sources."""
    digest: str | None = None
    """SHA-256 of the content, if there is no commit."""


class MergeInputRecord(_Record):
    """An input adapter: of a merge, or of continueFrom."""

    uri: str
    manifest_sha256: Sha256 | None = None
    origin: str | None = None
    """`Unverified` if another tool made the adapter: `files` lists what was read, but its lineage is unknown."""
    sha256: Sha256 | None = None
    """For an unverified adapter: SHA-256 of the output of `sha256sum` for its files."""
    files: dict[str, FileRecord] | None = None
    """For an unverified adapter: the files that were read."""
    revision: str | None = None
    """The commit, for hf:// adapters."""
    rank: int | None = None
    weight: str | None = None
    eval_loss: float | None = None
    """Loss on the evaluation data of the merge."""
    rejected: str | None = None
    """Why the adapter was published as rejected, if it was."""

    @property
    def digest(self) -> str | None:
        """The SHA-256 to pin it with in a reference."""
        return self.sha256 or self.manifest_sha256


class CheckpointRecord(_Record):
    """A checkpoint of another run that this run resumed from."""

    uri: str
    step: int
    run: RunIdentity


class StopRecord(_Record):
    """The stop of a run before its last planned step."""

    after_step: int
    """Optimizer steps done. Lineage.step is the step of the published weights."""
    of_steps: int | None = None
    """Planned optimizer steps."""
    why: str

    def __str__(self) -> str:
        """Return the stop in readable form."""
        planned = f" of {self.of_steps}" if self.of_steps else ""
        return f"stopped after step {self.after_step}{planned}: {self.why}"


_FOUR_BITS: Final = ("NF4", "FP4")
"""The types with double quantisation."""


class QuantizationRecord(_Record):
    """The quantisation of the frozen base model, with values of the API or a later version of it."""

    type: str
    double_quant: bool | None = None
    loaded_as: str | None = None
    """The data type of the weights before quantisation."""

    def __str__(self) -> str:
        """Return it in readable form, such as NF4 with double quantisation, loaded as BFloat16."""
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
    """The number of the best trial."""
    trials: int
    """The number of trials."""
    seed: int
    sampler: str


class AnsweredByRecord(_Record):
    """The number of lines that one version of a model answered."""

    name: str
    manifest_sha256: Sha256 | None = None
    """SHA-256 of the adapter's manifest. None: the base model."""
    lines: int


class Lineage(_Record):
    """The origin of the result, with everything needed to reproduce it."""

    model: SourceRecord | None = None
    dataset: SourceRecord | None = None
    """The training data; for a merge the evaluation data."""
    served_name: str | None = None
    """The base model's name in adapter_config.json."""
    loader: str | None = None
    """The auto class of transformers that loads the base model; None: AutoModelForCausalLM."""
    method: str | None = None
    rank: int | None = None
    hyperparameters: dict[str, JsonValue] = Field(default_factory=dict)
    """The resolved values by spec field, for people."""
    quantization: QuantizationRecord | None = None
    """The quantisation of the base model in training; None if it wasn't quantised."""
    steps: int | None = None
    """Optimizer steps done."""
    epochs: float | None = None
    """Average number of passes over each training row."""
    step: int | None = None
    """The step of the published weights: with early stopping the best one."""
    seed: int | None = None
    image: str | None = None
    """The trainer image, with its digest if it is known."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Library versions by distribution name."""
    device: str | None = None
    """The GPU's name, or `cpu`; for a LoRAJob `resolved.device` has more."""
    peak_bytes: int | None = None
    """Peak memory of the last attempt, as in status.memory.peakBytes."""
    metrics: dict[str, float] = Field(default_factory=dict)
    evaluations: list[EvaluationRecord] = Field(default_factory=list)
    """The latest evaluations, oldest first."""
    answered_by: list[AnsweredByRecord] = Field(default_factory=list)
    """Of a batch: the number of lines that each adapter version answered."""
    server: str | None = None
    """Of a batch: namespace and name of the AdapterServer."""
    continued_from: MergeInputRecord | None = None
    resumed_from: list[CheckpointRecord] = Field(default_factory=list)
    """The checkpoints of other runs that it resumed from, oldest first."""
    stopped: StopRecord | None = None
    """None: the run was complete."""
    rejected: str | None = None
    """Why it was published next to the output, as rejected. None: it is a regular result."""
    inputs: list[MergeInputRecord] = Field(default_factory=list)
    """The adapters of a merge, in order."""
    sweep: SweepRecord | None = None
    """None: the result isn't from a sweep."""
    verification: VerificationStatus | None = None
    found: DatasetStatus | None = None
    """What was found in the data set, as in status.dataset."""
    resolved: ResolvedStatus | None = None
    """Each setting and its source, as in status.resolved."""
    findings: list[FindingStatus] | None = None
    """The findings of the diagnosis, as in status.findings. None: there was no diagnosis."""
    checks: list[CheckStatus] | None = None
    """The checklist, as in status.checks."""

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics without NaN and infinity, which JSON doesn't have."""
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


class Manifest(_Record):
    """The content of manifest.json."""

    format: Literal["tunery.dev/manifest/v1"] = MANIFEST_FORMAT
    created: str
    """The creation time, RFC 3339 in UTC."""
    run: RunIdentity
    files: dict[str, FileRecord] = Field(min_length=1)
    """All files except the manifest, by path relative to the folder."""
    lineage: Lineage

    @property
    def size_bytes(self) -> int:
        """The total size of the files."""
        return sum(record.size for record in self.files.values())

    def to_json(self) -> bytes:
        """Return the stored bytes: indented JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode() + b"\n"
