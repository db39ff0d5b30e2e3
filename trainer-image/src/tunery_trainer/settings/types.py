"""The plan of a training run: every effective setting, decided before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Final

from tunery_api.methods import ComputeType, LoraInit, Method, PreferenceLoss, QuantizationType, TrainingTask
from tunery_api.status import ResolvedValue
from tunery_api.training import (
    GenerationSpec,
    Loss,
    OnOutOfMemory,
    Optimizer,
    Precision,
    PublishedWeights,
    Scheduler,
    TrainingSpec,
)


@dataclass(frozen=True)
class StoredQuantization:
    """How a checkpoint's linear layers were quantised by bitsandbytes before they were stored."""

    type: QuantizationType
    double_quant: bool
    skipped: tuple[str, ...] = ()
    """Modules that were left as they are, by the library's rule for names; empty: those that it leaves by itself."""


@dataclass(frozen=True)
class ModelFacts:
    """What config.json tells about the base model."""

    architecture: str
    """Name of the class, such as LlamaForCausalLM."""
    parameters: int
    layers: int
    hidden_size: int
    vocabulary: int
    max_positions: int | None
    """Longest sequence in tokens; None where the architecture has no limit of its own."""
    tied_embeddings: bool
    packable: bool
    """True where an example in a packed row was measured to have the logits that it has alone."""
    stored: StoredQuantization | None = None
    """How its weights are quantised already; None: they are not."""
    experts: tuple[str, ...] = ()
    """Names of the parameters that hold a mixture's experts, such as experts.down_proj; empty: it is none."""
    expert_parameters: int = 0
    """How many of `parameters` are theirs."""


class DeviceKind(StrEnum):
    """What training runs on."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class DeviceFacts:
    """What is known of the device that training will run on; preflight and training must be told the same."""

    kind: DeviceKind
    memory_bytes: int | None
    """Memory of the GPU, or on a CPU the process's share of the container's; None: not known."""
    bfloat16: bool
    """True where the device multiplies bfloat16 matrices natively."""
    devices: int = 1
    """How many of them each node has that train together, in a process each; all alike."""
    nodes: int = 1

    @property
    def world(self) -> int:
        """How many devices train together."""
        return self.devices * self.nodes

    @property
    def sharing(self) -> int:
        """How many of them share the memory of their node: processes on its CPU; a GPU has its own."""
        return self.devices if self.kind is DeviceKind.CPU else 1

    def together(self, devices: int, nodes: int) -> DeviceFacts:
        """Return the facts of one of so many alike; processes on a CPU have a share of its memory each."""
        facts = replace(self, devices=devices, nodes=nodes)
        memory = self.memory_bytes
        return replace(facts, memory_bytes=memory // facts.sharing if memory is not None else None)

    @property
    def words(self) -> str:
        """What trains together, such as `8 GPUs on 2 nodes`: on a CPU each node is one device."""
        nodes = f"{self.nodes} {'node' if self.nodes == 1 else 'nodes'}"
        if self.kind is DeviceKind.CPU and self.devices == 1:
            return nodes
        what = "GPU" if self.kind is DeviceKind.CUDA else "process"
        every = f"{self.world} {what}" + ("" if self.world == 1 else "es" if what.endswith("s") else "s")
        return every if self.nodes == 1 else f"{every} on {nodes}"


class SettingSource(StrEnum):
    """Where a setting came from."""

    MANIFEST = "Manifest"
    PRESET = "Preset"
    DEFAULT = "Default"
    RULE = "Rule"
    ADAPTER = "Adapter"
    """The one of continueFrom."""
    CHECKPOINT = "Checkpoint"
    """The one that the run goes on from."""
    MODEL = "Model"
    """The base model's own configuration."""
    MEMORY = "Memory"
    """What was planned did not fit when it ran."""


@dataclass(frozen=True)
class AdapterSettings:
    """What the adapter looks like; rank, alpha and the rest mean nothing to methods that have none."""

    rank: int
    """0 for IA3, prompt and prefix tuning; AdaLoRA's average at the end."""
    alpha: float
    """A whole number, but where an adapter made elsewhere is trained on."""
    dropout: float
    target_modules: tuple[str, ...] | None
    """Names, or one word; None: IA3's own choice, or a method without target modules."""
    use_rslora: bool = False
    init: LoraInit = LoraInit.DEFAULT
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AdaLoraSettings:
    """AdaLoRA's budget; step counts that are None follow from the number of all steps."""

    initial_rank: int
    target_rank: int
    warmup_steps: int | None
    final_steps: int | None
    update_every_steps: int | None


@dataclass(frozen=True)
class PromptSettings:
    """The virtual tokens of prompt and prefix tuning."""

    virtual_tokens: int
    init_text: str | None = None
    projection: bool = False


@dataclass(frozen=True)
class QuantizationSettings:
    """How the frozen base is stored."""

    type: QuantizationType
    double_quant: bool
    compute_type: ComputeType
    stored: StoredQuantization | None = None
    """Set where the checkpoint is quantised already, and loaded as it is."""


@dataclass(frozen=True)
class PreferenceSettings:
    """How answers are weighed against each other."""

    beta: float
    loss_type: PreferenceLoss | None = None
    """Set for DPO only."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    """1 for all but KTO."""


@dataclass(frozen=True)
class TrainingSettings:
    """The training loop; exactly one of epochs and max_steps is set."""

    epochs: float | None
    max_steps: int | None
    learning_rate: float
    """Peak, after scaling with the rank."""
    scheduler: Scheduler
    warmup: float
    """Below 1: share of all steps; else steps."""
    batch_size: int
    gradient_accumulation: int
    max_length: int
    packing: bool
    group_by_length: bool
    loss: Loss
    optimizer: Optimizer
    weight_decay: float
    max_grad_norm: float
    """0: gradients are not clipped."""
    precision: Precision
    """Never Auto."""
    gradient_checkpointing: bool
    on_out_of_memory: OnOutOfMemory
    neftune_noise_alpha: float | None
    seed: int
    devices: int = 1
    """How many train together; `gradient_accumulation` is a multiple, as it counts the passes of all of them."""
    sharded: bool = False
    """Whether the base is spread over the devices of each node (FSDP); else each of them has the whole base."""


SPEC_FIELDS: Final = tuple(each.name for each in fields(TrainingSettings) if each.name in TrainingSpec.model_fields)
"""The settings that spec.training has a field for."""


@dataclass(frozen=True)
class EvaluationSettings:
    """When the held-out rows are measured; exactly one of every_steps and times is set."""

    every_steps: int | None
    times: int | None
    """At equal distances, the last one at the end."""
    publish: PublishedWeights
    generation: GenerationSpec | None
    """Held-out rows that are answered; None: none are."""
    patience: int | None
    """Evaluations in a row without a better loss that end training; None: it does not stop early."""


@dataclass(frozen=True)
class RunSettings:
    """Every effective setting of a run, and where each came from."""

    method: Method
    """Never Auto."""
    method_reason: str
    adapter: AdapterSettings
    adalora: AdaLoraSettings | None
    """Set for AdaLoRA only."""
    prompt: PromptSettings | None
    """Set for prompt and prefix tuning only."""
    quantization: QuantizationSettings | None
    training: TrainingSettings
    evaluation: EvaluationSettings
    task: TrainingTask
    preference: PreferenceSettings | None
    """Set for DPO, ORPO and KTO."""
    values: tuple[ResolvedValue, ...]
