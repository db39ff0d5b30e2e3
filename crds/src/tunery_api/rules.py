"""Provide RULES: the cross-field validation rules, one row each, evaluated by the API server (CEL) and by Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from tunery_api.adaptermerge import ELECTING, AdapterMergeSpec, MergeDataset
from tunery_api.cel import (
    CustomCondition,
    Empty,
    Matches,
    Rule,
    RuleTable,
    absent,
    allowed_when,
    at_most_one,
    exactly_one,
    excludes,
    given,
    is_,
    is_not,
    listed,
    never,
    requires,
    value_at,
)
from tunery_api.fields import ApiModel, is_same_uri, uris_overlap
from tunery_api.inputs import (
    FORMATS_OF_TASK,
    AdapterReference,
    DatasetEvaluation,
    DatasetSpec,
    ModelSpec,
    OutputSpec,
)
from tunery_api.jobs import FOREIGN_ACCELERATORS, PodResources, Toleration
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.lorasweep import LoRASweepSpec, ParameterSpec, RangeSpec
from tunery_api.methods import (
    DEFAULT_TARGET_RANK,
    LORA_FIELDS,
    PREFERENCE_FIELDS,
    TARGET_WORDS,
    AdaLoraSpec,
    LoraSpec,
    Method,
    PreferenceSpec,
    TrainingTask,
)
from tunery_api.names import CHECKPOINTS_PREFIX
from tunery_api.server_rules import SERVER_RULES
from tunery_api.training import CheckpointSpec, EvaluationSpec, ResumeFrom, TrainingSpec

_HUB: Final = "^hf://"
_PREFERENCE_TASKS: Final = (TrainingTask.DPO, TrainingTask.ORPO, TrainingTask.KTO)
_PROMPT_METHODS: Final = (Method.PROMPT_TUNING, Method.PREFIX_TUNING)
_USE_ANOTHER_URI: Final = "use another URI"


def _aliases(block: type[ApiModel]) -> list[str]:
    return [str(info.alias) for info in block.model_fields.values()]


def _lora_rules() -> Iterator[Rule]:
    """Yield for each field of `lora` the rule that some methods don't use it."""
    for name in _aliases(LoraSpec):
        others = [method for method, read in LORA_FIELDS.items() if name not in read]
        fix = "remove it, or with AdaLoRA set adalora.targetRank" if name == "rank" else "remove it"
        says = f"is not a setting of {listed(others, 'or')}"
        yield never(LoRAJobSpec, f"lora.{name}", given(f"lora.{name}"), is_("method", *others), says=says, fix=fix)


def _preference_rules() -> Iterator[Rule]:
    """Yield for each field of `preference` the rule that some tasks don't use it."""
    for name in _aliases(PreferenceSpec):
        readers = [task for task in _PREFERENCE_TASKS if name in PREFERENCE_FIELDS[task]]
        if len(readers) < len(_PREFERENCE_TASKS):
            yield allowed_when(LoRAJobSpec, f"preference.{name}", "task", *readers)


def _format_rules() -> Iterator[Rule]:
    """Yield for each task the rule that the data set has one of its formats."""
    for task, formats in FORMATS_OF_TASK.items():
        other = is_not("dataset.format", "Auto", *formats)
        fix = f"use {listed(formats, 'or')}, or remove it"
        yield never(LoRAJobSpec, "dataset.format", is_("task", task), other, says=f"does not fit task: {task}", fix=fix)


def _for_sft_only(field: str, wrong: Any) -> Rule:
    return never(LoRAJobSpec, field, wrong, is_not("task", "SFT"), says="is for task: SFT only")


def _trimmed_uri(uri: str) -> str:
    """Return the CEL expression of a URI without trailing slashes; the schema rejects all other aliases."""
    return f"{uri}.find('^.*[^/]')"


def _separate_from_model(block: type[ApiModel], model: str) -> Rule:
    """Return the rule that output and model don't overlap, as in fields.uris_overlap."""
    one, other = (f"({_trimmed_uri(uri)} + '/')" for uri in (f"self.{model}.uri", "self.output.uri"))
    text = f"({one}.startsWith({other}) || {other}.startsWith({one}))"
    overlaps = CustomCondition(
        text, lambda raw: uris_overlap(value_at(raw, f"{model}.uri"), value_at(raw, "output.uri"))
    )
    says = "overlaps the base model, which Tunery never changes"
    return Rule(
        block, "output.uri", (given(model), given("output.uri"), overlaps), says, _USE_ANOTHER_URI, on_create=True
    )


def _separate_from_source(block: type[ApiModel], source: str) -> Rule:
    """Return the rule that a training run doesn't replace the adapter that it continues from."""
    text = f"{_trimmed_uri(f'self.{source}.uri')} == {_trimmed_uri('self.output.uri')}"
    same = CustomCondition(text, lambda raw: is_same_uri(value_at(raw, f"{source}.uri"), value_at(raw, "output.uri")))
    says = "is the adapter of continueFrom, which Tunery never changes"
    return Rule(
        block, "output.uri", (given(f"{source}.uri"), given("output.uri"), same), says, _USE_ANOTHER_URI, on_create=True
    )


_PASSES: Final = "self.?training.?gradientAccumulation.orValue(0)"
_DEVICES: Final = "(self.?resources.?gpus.orValue(1) > 1 ? self.resources.gpus : 1) * self.?resources.?nodes.orValue(1)"


def _shared_unevenly(raw: Any) -> bool:
    resources = raw.get("resources", {})
    devices = max(1, resources.get("gpus", 1)) * resources.get("nodes", 1)
    return bool(value_at(raw, "training.gradientAccumulation") % devices)


def _replaces_input(raw: Any) -> bool:
    output = value_at(raw, "output.uri")
    return any("uri" in each and is_same_uri(each["uri"], output) for each in raw["adapters"])


def _weighted_in_part(raw: Any) -> bool:
    weighted = sum("weight" in each for each in raw["adapters"])
    return weighted not in (0, len(raw["adapters"]))


BLOCKS: Final = (
    never(
        ModelSpec, "revision", given("revision"), Matches("uri", _HUB, negated=True), says="is for hf:// models only"
    ),
    never(
        DatasetSpec, "template", is_("template", "Plain"), is_("format", "Messages", "ShareGPT"),
        says="Plain is for prompts with completions, not for format: Messages or ShareGPT",
    ),
    at_most_one(DatasetEvaluation, "uri", "split", "fraction"),
    requires(
        DatasetEvaluation, "sha256", "uri", "split",
        fix="remove it, because dataset.sha256 covers rows that are held out of dataset.uri",
    ),
    never(
        LoraSpec, "targetModules",
        CustomCondition(
            f"has(self.targetModules) && self.targetModules.size() > 1 && "
            f"self.targetModules.exists(name, name in {sorted(TARGET_WORDS)})",
            lambda raw: len(names := raw.get("targetModules", ())) > 1 and not TARGET_WORDS.isdisjoint(names),
        ),
        says=f"has one of {', '.join(sorted(TARGET_WORDS))} and other names",
        fix="set one such word alone, or module names only",
    ),
    never(
        AdaLoraSpec, "initialRank",
        CustomCondition(
            "has(self.initialRank) && "
            f"self.initialRank <= (has(self.targetRank) ? self.targetRank : {DEFAULT_TARGET_RANK})",
            lambda raw: raw.get("initialRank", math.inf) <= raw.get("targetRank", DEFAULT_TARGET_RANK),
        ),
        says=f"is not above targetRank, {DEFAULT_TARGET_RANK} by default: AdaLoRA prunes down to it",
        fix="raise it, or remove it",
    ),
    never(
        PodResources, "gpuResource", Matches("gpuResource", f"^({'|'.join(FOREIGN_ACCELERATORS)})"),
        says="is not a resource of NVIDIA GPUs, which the image needs",
        fix="use the resource of NVIDIA GPUs, or remove it",
    ),
    never(
        Toleration, "value", is_not("value", ""), is_("operator", "Exists"),
        says="cannot be set with operator: Exists", fix="remove it, or set operator: Equal",
    ),
    never(
        Toleration, "key", absent("key"), is_("operator", "Equal"),
        says="is required with operator: Equal", fix="set it, or set operator: Exists to tolerate every taint",
    ),
    allowed_when(Toleration, "tolerationSeconds", "effect", "NoExecute"),
    excludes(TrainingSpec, "maxSteps", "epochs"),
    never(
        TrainingSpec, "groupByLength", is_("groupByLength", True), is_("packing", True),
        says="has no effect with packing, which makes all rows equally long", fix="remove it, or set packing: false",
    ),
    excludes(EvaluationSpec, "everySteps", "times"),
    excludes(CheckpointSpec, "everyMinutes", "everySteps"),
    exactly_one(AdapterReference, "loraJobRef", "uri"),
    requires(AdapterReference, "sha256", "uri", fix="remove it, because a LoRAJob's adapter is verified without it"),
    never(
        AdapterReference, "revision", given("revision"), Matches("uri", _HUB, negated=True),
        says="is for hf:// adapters only",
    ),
    exactly_one(ResumeFrom, "loraJobRef", "uri"),
    Rule(
        OutputSpec, "uri", (Matches("uri", f"^s3://[^/]+/{CHECKPOINTS_PREFIX}(/|$)"),),
        f"is under {CHECKPOINTS_PREFIX}/, where files expire", "use another prefix", on_create=True,
    ),
)  # fmt: skip
"""The rules of blocks that several kinds share."""

LORAJOB: Final = (
    allowed_when(LoRAJobSpec, "preference", "task", *_PREFERENCE_TASKS),
    *_preference_rules(),
    *_format_rules(),
    _for_sft_only("training.packing", is_("training.packing", True)),
    _for_sft_only("training.loss", is_("training.loss", "All")),
    _for_sft_only("training.neftuneNoiseAlpha", is_not("training.neftuneNoiseAlpha", 0.0)),
    _for_sft_only("evaluation.generation", given("evaluation.generation")),
    _for_sft_only("preset", given("preset")),
    never(
        LoRAJobSpec, "evaluation.generation", given("evaluation.generation"), is_("training.loss", "All"),
        says="needs prompts and answers, which training.loss: All does not separate", fix="remove one of the two",
    ),
    allowed_when(LoRAJobSpec, "adalora", "method", "AdaLoRA"),
    allowed_when(LoRAJobSpec, "promptTuning", "method", "PromptTuning"),
    allowed_when(LoRAJobSpec, "prefixTuning", "method", "PrefixTuning"),
    never(
        LoRAJobSpec, "quantization", given("quantization"), is_("method", "LoRA", "DoRA"),
        says="does not fit LoRA and DoRA, which train on the unquantized base",
        fix="set method: QLoRA or QDoRA, or remove it",
    ),
    never(
        LoRAJobSpec, "quantization.type", is_("quantization.type", "Int8"), is_("method", "QDoRA"),
        says="must have 4 bits for QDoRA", fix="use NF4 or FP4, or set method: QLoRA",
    ),
    never(
        LoRAJobSpec, "lora.init", is_("lora.init", "PiSSA", "OLoRA", "LoftQ"), is_("method", "Auto"),
        says="does not fit every method that Auto may choose", fix="set the method, or use another init",
    ),
    never(
        LoRAJobSpec, "lora.init", is_("lora.init", "PiSSA", "OLoRA"), is_("method", "QLoRA", "QDoRA"),
        says="PiSSA and OLoRA need the unquantized base", fix="set method: LoRA or DoRA, or use another init",
    ),
    never(
        LoRAJobSpec, "lora.init", is_("lora.init", "LoftQ"), is_("method", "LoRA", "DoRA", "QDoRA"),
        says="LoftQ is for method: QLoRA only", fix="set method: QLoRA, or use another init",
    ),
    never(
        LoRAJobSpec, "lora.init", is_("lora.init", "LoftQ"), is_("quantization.type", "Int8"),
        says="LoftQ needs a base of 4 bits", fix="set quantization.type: NF4 or FP4, or use another init",
    ),
    never(
        LoRAJobSpec, "lora.init", is_not("lora.init", "Default"), given("continueFrom"),
        says="has no effect with continueFrom, which starts from the weights of its adapter",
    ),
    *_lora_rules(),
    never(
        LoRAJobSpec, "training.gradientAccumulation", given("training.gradientAccumulation"),
        CustomCondition(f"{_PASSES} > 0 && {_DEVICES} > 0 && {_PASSES} % ({_DEVICES}) != 0", _shared_unevenly),
        says="is not a multiple of the devices that share the passes: resources.gpus x resources.nodes, or "
        "resources.nodes with gpus: 0",
        fix="set such a multiple, or remove it",
    ),
    never(
        LoRAJobSpec, "training.parallelism", is_("training.parallelism", "FSDP"), is_("resources.gpus", 0, 1),
        says="FSDP needs 2 or more GPUs in a pod, which share the base", fix="raise resources.gpus, or remove it",
    ),
    never(
        LoRAJobSpec, "training.parallelism", is_("training.parallelism", "FSDP"), is_("quantization.type", "Int8"),
        says="FSDP cannot share a base in Int8", fix="set quantization.type: NF4 or FP4, or remove it",
    ),
    never(
        LoRAJobSpec, "training.precision", is_("training.precision", "Float16"), is_("resources.gpus", 0),
        says="Float16 needs a GPU", fix="use Auto, Float32 or BFloat16",
    ),
    never(
        LoRAJobSpec, "training.scaleLearningRateWithRank", is_("training.scaleLearningRateWithRank", True),
        is_("method", *_PROMPT_METHODS, "IA3"),
        says="is for methods with a rank only", fix="set learningRate itself",
    ),
    never(
        LoRAJobSpec, "prefixTuning.projection", is_("prefixTuning.projection", True), given("continueFrom"),
        says="cannot be continued: a published prefix has no projection",
    ),
    _separate_from_model(LoRAJobSpec, "model"),
    _separate_from_source(LoRAJobSpec, "continueFrom"),
    never(
        LoRAJobSpec, "continueFrom", given("continueFrom"), is_("method", "AdaLoRA"),
        says="cannot be set with AdaLoRA, whose ranks are final once pruned", fix="train a new adapter",
    ),
    excludes(LoRAJobSpec, "resumeFrom", "continueFrom"),
    never(
        LoRAJobSpec, "training.packing", is_("training.packing", True), is_("method", *_PROMPT_METHODS),
        says="does not fit prompt and prefix tuning: only the first example of a row would see the trained tokens",
        fix="remove it, or set it to false",
    ),
    never(
        LoRAJobSpec, "training.gradientCheckpointing", is_("training.gradientCheckpointing", True),
        is_("method", "PrefixTuning"),
        says="does not fit PrefixTuning, which cannot recompute activations", fix="remove it, or use PromptTuning",
    ),
)  # fmt: skip

ADAPTERMERGE: Final = (
    never(
        MergeDataset, "format", is_not("format", "Auto", *FORMATS_OF_TASK[TrainingTask.SFT]),
        says="is a preference format, which has no loss to evaluate a merge by",
        fix=f"use {listed(FORMATS_OF_TASK[TrainingTask.SFT], 'or')}",
    ),
    never(
        AdapterMergeSpec, "adapters",
        CustomCondition(
            "self.adapters.exists(a, has(a.weight)) && !self.adapters.all(a, has(a.weight))",
            _weighted_in_part,
        ),
        says="has a weight for some adapters only", fix="set weight for each adapter, or for none",
    ),
    never(
        AdapterMergeSpec, "density", given("density"), is_("method", "Linear"),
        says="is not for method: Linear, which keeps every entry", fix="remove it, or use MagnitudePrune or DARELinear",
    ),
    allowed_when(AdapterMergeSpec, "majoritySign", "method", *sorted(ELECTING)),
    never(
        AdapterMergeSpec, "model", given("model"), is_("into", "Adapter"), absent("evaluation"),
        CustomCondition(
            "!self.adapters.exists(a, has(a.uri))", lambda raw: not any("uri" in each for each in raw["adapters"])
        ),
        says="is not needed to combine adapters of LoRAJobs", fix="remove it, or set into: Model or evaluation",
    ),
    _separate_from_model(AdapterMergeSpec, "model"),
    Rule(
        AdapterMergeSpec, "output.uri",
        (
            given("output.uri"),
            CustomCondition(
                f"self.adapters.exists(a, has(a.uri) && {_trimmed_uri('a.uri')} == {_trimmed_uri('self.output.uri')})",
                _replaces_input,
            ),
        ),
        "is one of the adapters, which Tunery never changes", _USE_ANOTHER_URI, on_create=True,
    ),
)  # fmt: skip

LORASWEEP: Final = (
    _separate_from_model(LoRASweepSpec, "template.model"),
    _separate_from_source(LoRASweepSpec, "template.continueFrom"),
    never(
        LoRASweepSpec, "parameters", absent("preset"), Empty("parameters"),
        says="names nothing to search", fix="list fields of the template, or set preset: Guide",
    ),
    never(
        LoRASweepSpec, "budget", given("budget"), is_("template.resources.gpus", 0),
        says="counts the seconds of GPUs, and template.resources.gpus is 0", fix="use activeDeadlineSeconds instead",
    ),
    never(
        ParameterSpec, "",  # CEL declares no field without a type; has() works on dyn()
        CustomCondition(
            "has(self.range) == has(dyn(self).choices)", lambda raw: ("range" in raw) == ("choices" in raw)
        ),
        says="needs exactly one of range and choices", fix="set one of them",
    ),
    never(
        RangeSpec, "max", CustomCondition("self.min >= self.max", lambda raw: raw["min"] >= raw["max"]),
        says="is not above min", fix="raise it, or lower min",
    ),
    never(
        RangeSpec, "min", is_("log", True), CustomCondition("self.min <= 0.0", lambda raw: raw["min"] <= 0),
        says="is not above 0 with log: true", fix="raise it, or remove log",
    ),
    never(
        RangeSpec, "step", given("step"), is_("log", True), says="cannot be set with log", fix="remove one of the two"
    ),
)  # fmt: skip

RULES: Final = RuleTable(*BLOCKS, *LORAJOB, *ADAPTERMERGE, *LORASWEEP, *SERVER_RULES)
