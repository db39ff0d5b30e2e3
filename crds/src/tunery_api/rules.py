"""What a spec must not say although the schema allows it: each rule one small function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

from tunery_api.adaptermerge import ELECTING, AdapterMergeSpec, MergeMethod, MergeTarget
from tunery_api.errors import FieldError
from tunery_api.fields import alias_of, bucket_problem, overlap, same_place
from tunery_api.inputs import DatasetFormat, DatasetTemplate, ModelSpec
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import (
    DEFAULT_TARGET_RANK,
    INITIAL_RANK_FACTOR,
    LORA_FAMILY,
    PROMPT_LEARNING,
    QUANTIZED,
    QUANTIZED_TWIN,
    READ_OF_LORA,
    TARGET_WORDS,
    LoraInit,
    Method,
    QuantizationType,
)
from tunery_api.names import CHECKPOINTS_PREFIX
from tunery_api.placement import FOREIGN_ACCELERATORS
from tunery_api.preference_rules import dataset_of_task, generation, merge_dataset, preference, preference_loop

Errors = Iterator[FieldError]

_NEEDS_NAMED_METHOD: Final = frozenset({LoraInit.PISSA, LoraInit.OLORA, LoraInit.LOFTQ})


def length(spec: LoRAJobSpec) -> Errors:
    """Epochs or steps."""
    training = spec.training
    if training.epochs is not None and training.max_steps is not None:
        yield FieldError("spec.training.maxSteps", "cannot be set together with epochs; keep one of the two")


def learning_rate(spec: LoRAJobSpec) -> Errors:
    """A rate scaled only where there is a rank."""
    training = spec.training
    if training.scale_learning_rate_with_rank and (spec.method in PROMPT_LEARNING or spec.method is Method.IA3):
        yield FieldError(
            "spec.training.scaleLearningRateWithRank", f"{spec.method} has no rank; set learningRate itself"
        )


def packing(spec: LoRAJobSpec) -> Errors:
    """Packed rows need attention kept inside each example, and no sorting by length."""
    if not spec.training.packing:
        return
    if spec.method in PROMPT_LEARNING:
        yield FieldError(
            "spec.training.packing",
            f"{spec.method} puts its tokens before the row, so only the first example of a packed one would see them; "
            "leave packing out or set it to false",
        )
    if spec.training.group_by_length:
        yield FieldError(
            "spec.training.groupByLength", "packed rows all have the same length; leave it out, or set packing: false"
        )


def gradient_checkpointing(spec: LoRAJobSpec) -> Errors:
    """Prefix tuning feeds a cache, which recomputing would fill twice."""
    if spec.training.gradient_checkpointing and spec.method is Method.PREFIX_TUNING:
        yield FieldError(
            "spec.training.gradientCheckpointing",
            "PrefixTuning cannot recompute activations; leave it out, or use PromptTuning",
        )


def devices(spec: LoRAJobSpec) -> Errors:
    """What the devices can compute with, and share."""
    yield from (FieldError(f"spec.training.{field}", text) for field, text in spec.device_problems())


def gpu_resource(spec: LoRAJobSpec | AdapterMergeSpec) -> Errors:
    """The image computes with CUDA, on NVIDIA's GPUs alone."""
    name = spec.resources.gpu_resource
    if name.startswith(FOREIGN_ACCELERATORS):
        yield FieldError(
            "spec.resources.gpuResource", f"{name} is no NVIDIA GPU, which the trainer's image needs; or set gpus: 0"
        )


def quantization(spec: LoRAJobSpec) -> Errors:
    """A quantised base has method names of its own, and one pair that the libraries cannot train."""
    if spec.quantization is None:
        return
    quantized = QUANTIZED_TWIN.get(spec.method)
    if quantized:
        yield FieldError(
            "spec.quantization",
            f"{spec.method} trains on the unquantised base; use method: {quantized}, or leave it out",
        )
    if spec.method is Method.QDORA and spec.quantization.type is QuantizationType.INT8:
        yield FieldError("spec.quantization.type", "QDoRA works on 4 bits; use NF4 or FP4, or method: QLoRA")


def initialization(spec: LoRAJobSpec) -> Errors:
    """Some first weights need the full-precision base, one needs a quantised one."""
    init, method = spec.lora.init, spec.method
    if method is Method.AUTO and init in _NEEDS_NAMED_METHOD:
        yield _init_error(f"{init} does not suit every method that Auto may choose; name the method")
    elif method in QUANTIZED and init in (LoraInit.PISSA, LoraInit.OLORA):
        plain = next(plain for plain, twin in QUANTIZED_TWIN.items() if twin is method)
        yield _init_error(
            f"{init} changes the base weights, which {method} has quantised; use method: {plain} or LoftQ"
        )
    elif method in LORA_FAMILY - {Method.QLORA} and init is LoraInit.LOFTQ:
        yield _init_error(f"LoftQ makes up for a 4-bit base, in method: QLoRA only; use another init with {method}")
    elif init is LoraInit.LOFTQ and spec.quantization and spec.quantization.type is QuantizationType.INT8:
        yield _init_error("LoftQ makes up for 4 bits; use quantization.type NF4 or FP4, or another init")
    if spec.continue_from is not None and init is not LoraInit.DEFAULT:
        yield _init_error("continueFrom starts from the named adapter's weights; leave init out")


def _init_error(message: str) -> FieldError:
    return FieldError("spec.lora.init", message)


def unused_lora_settings(spec: LoRAJobSpec) -> Errors:
    """A setting that the method would not look at is a misunderstanding."""
    allowed = READ_OF_LORA.get(spec.method)
    if allowed is None:
        return
    for name in sorted({alias_of(spec.lora, name) for name in spec.lora.model_fields_set} - allowed):
        instead = "; use adalora.targetRank" if (spec.method, name) == (Method.ADALORA, "rank") else "; leave it out"
        yield FieldError(f"spec.lora.{name}", f"{spec.method} has no such setting{instead}")


def method_blocks(spec: LoRAJobSpec) -> Errors:
    """Each method's own block goes with that method, named."""
    for name, method in (
        ("adalora", Method.ADALORA),
        ("prompt_tuning", Method.PROMPT_TUNING),
        ("prefix_tuning", Method.PREFIX_TUNING),
    ):
        if getattr(spec, name) is not None and spec.method is not method:
            yield FieldError(
                f"spec.{alias_of(spec, name)}",
                f"goes with method: {method}, not {spec.method}; set that, or leave it out",
            )


def adalora_ranks(spec: LoRAJobSpec) -> Errors:
    """AdaLoRA prunes from one rank down to another."""
    block = spec.adalora
    if block is None:
        return
    target = block.target_rank or DEFAULT_TARGET_RANK
    initial = block.initial_rank or math.ceil(INITIAL_RANK_FACTOR * target)
    if initial <= target:
        yield FieldError(
            "spec.adalora.initialRank", f"must be above targetRank, {target}, is {initial}: it is pruned down to that"
        )


def target_modules(spec: LoRAJobSpec) -> Errors:
    """One word, or names."""
    names = spec.lora.target_modules or []
    words = sorted(TARGET_WORDS.intersection(names))
    if words and len(names) > 1:
        yield FieldError(
            "spec.lora.targetModules", f"{words[0]} must stand alone; give that one word, or module names only"
        )


def evaluation_rows(spec: LoRAJobSpec) -> Errors:
    """The held-out rows come from one place."""
    block = spec.dataset.evaluation
    if block is None:
        return
    if sum(value is not None for value in (block.uri, block.split, block.fraction)) > 1:
        yield FieldError("spec.dataset.evaluation", "takes one of uri, split and fraction; keep one")
    if block.sha256 is not None and block.uri is None and block.split is None:
        yield FieldError(
            "spec.dataset.evaluation.sha256",
            "goes with uri or split; rows held out of spec.dataset.uri are known by spec.dataset.sha256: leave it out",
        )


def dataset_template(spec: LoRAJobSpec) -> Errors:
    """Only a chat template can say who speaks."""
    conversations = (DatasetFormat.MESSAGES, DatasetFormat.SHARE_GPT)
    if spec.dataset.template is DatasetTemplate.PLAIN and spec.dataset.format in conversations:
        yield FieldError(
            "spec.dataset.template",
            f"Plain is for prompts with completions, not for format: {spec.dataset.format}; leave it out",
        )


def evaluations(spec: LoRAJobSpec) -> Errors:
    """One rhythm."""
    if spec.evaluation.times is not None and spec.evaluation.every_steps is not None:
        yield FieldError("spec.evaluation.everySteps", "cannot be set together with times; keep one of the two")


def checkpoints(spec: LoRAJobSpec) -> Errors:
    """One rhythm."""
    if spec.checkpoint.every_steps is not None and spec.checkpoint.every_minutes is not None:
        yield FieldError("spec.checkpoint.everyMinutes", "cannot be set together with everySteps; keep one of the two")


def continue_from(spec: LoRAJobSpec) -> Errors:
    """One adapter, of a kind that can be trained on."""
    source = spec.continue_from
    if source is None:
        return
    yield from (FieldError(f"spec.continueFrom{field}", text) for field, text in source.problems())
    if source.uri is not None and same_place(source.uri, spec.output.uri):
        yield FieldError("spec.output.uri", "is the adapter of spec.continueFrom, which stays: choose another place")
    if spec.method is Method.ADALORA:
        yield FieldError("spec.continueFrom", "AdaLoRA's ranks are final once pruned; train a new adapter instead")
    if spec.method is Method.PREFIX_TUNING and spec.prefix_tuning and spec.prefix_tuning.projection:
        yield FieldError(
            "spec.prefixTuning.projection", "a published prefix has no projection left; leave it out to continue one"
        )


def resume_from(spec: LoRAJobSpec) -> Errors:
    """One source, and no other start."""
    source = spec.resume_from
    if source is None:
        return
    if (source.lora_job_ref is None) == (source.uri is None):
        yield FieldError("spec.resumeFrom", "takes exactly one of loraJobRef and uri")
    if spec.continue_from is not None:
        yield FieldError(
            "spec.resumeFrom",
            "cannot be set together with continueFrom: a checkpoint holds the adapter that it began with; keep one",
        )


def output(spec: LoRAJobSpec | AdapterMergeSpec) -> Errors:
    """A bucket that can exist, and a place of its own, that no checkpoints' lifecycle rule clears away."""
    yield from _bucket("spec.output.uri", spec.output.uri)
    scheme, _, rest = (spec.output.uri or "").partition("://")
    if scheme == "s3" and rest.split("/")[1:2] == [CHECKPOINTS_PREFIX]:
        yield FieldError("spec.output.uri", f"{CHECKPOINTS_PREFIX}/ is for checkpoints, which go; use another prefix")
    if spec.model is not None and overlap(spec.model.uri, spec.output.uri):
        text = (
            f"is no place of its own beside the model's, {spec.model.uri}, which stays as it is: choose another place"
        )
        yield FieldError("spec.output.uri", text)


def lorajob_places(spec: LoRAJobSpec) -> Errors:
    """What is read lies in buckets that can exist."""
    own, previous, source = spec.dataset.evaluation, spec.continue_from, spec.resume_from
    yield from _bucket("spec.model.uri", spec.model.uri)
    yield from _bucket("spec.dataset.uri", spec.dataset.uri)
    yield from _bucket("spec.dataset.evaluation.uri", own.uri if own else None)
    yield from _bucket("spec.continueFrom.uri", previous.uri if previous else None)
    yield from _bucket("spec.resumeFrom.uri", source.uri if source else None)


def merge_places(spec: AdapterMergeSpec) -> Errors:
    """What is merged lies in buckets that can exist."""
    yield from _bucket("spec.model.uri", spec.model.uri if spec.model else None)
    yield from _bucket("spec.evaluation.dataset.uri", spec.evaluation.dataset.uri if spec.evaluation else None)
    for index, adapter in enumerate(spec.adapters):
        yield from _bucket(f"spec.adapters[{index}].uri", adapter.uri)


def _bucket(path: str, uri: str | None) -> Errors:
    scheme, _, rest = (uri or "").partition("://")
    problem = bucket_problem(rest.partition("/")[0]) if scheme == "s3" else None
    if problem is not None:
        yield FieldError(path, f"{problem}; write s3://bucket/prefix")


def lorajob_revision(spec: LoRAJobSpec) -> Errors:
    """Only the hub has revisions."""
    yield from _revision(spec.model)


def _revision(model: ModelSpec) -> Errors:
    if model.revision is not None and not model.uri.startswith("hf://"):
        yield FieldError("spec.model.revision", "is for hf:// models only; leave it out")


def merge_inputs(spec: AdapterMergeSpec) -> Errors:
    """Each input is one adapter."""
    for index, adapter in enumerate(spec.adapters):
        yield from (FieldError(f"spec.adapters[{index}]{field}", text) for field, text in adapter.problems())
        if adapter.uri is not None and same_place(adapter.uri, spec.output.uri):
            yield FieldError(
                "spec.output.uri", f"is the adapter of spec.adapters[{index}], which stays: choose another"
            )


def merge_weights(spec: AdapterMergeSpec) -> Errors:
    """A weight that is left open depends on none that is given."""
    given = [item.weight is not None for item in spec.adapters]
    if any(given) and not all(given):
        missing = given.index(False)
        yield FieldError(f"spec.adapters[{missing}].weight", "give a weight to each adapter, or to none")


def merge_density(spec: AdapterMergeSpec) -> Errors:
    """A share to keep goes with a method that drops."""
    if spec.density is not None and spec.method is MergeMethod.LINEAR:
        yield FieldError("spec.density", "Linear keeps every entry; leave it out, or use MagnitudePrune or DARELinear")


def merge_sign(spec: AdapterMergeSpec) -> Errors:
    """Only TIES elects signs."""
    if "majority_sign" in spec.model_fields_set and spec.method not in ELECTING:
        yield FieldError("spec.majoritySign", f"{spec.method} elects no sign; leave it out, or use a method with TIES")


def merge_model(spec: AdapterMergeSpec) -> Errors:
    """Adapters are combined without their base, unless they are measured on it, or compared with it."""
    if spec.model is None:
        return
    compared = any(adapter.uri is not None for adapter in spec.adapters)
    if spec.into is not MergeTarget.MODEL and spec.evaluation is None and not compared:
        text = (
            "adapters of LoRAJobs are combined without the base model; leave it out, or set into: Model or evaluation"
        )
        yield FieldError("spec.model", text)
    yield from _revision(spec.model)


LORAJOB_RULES: Final[tuple[Callable[[LoRAJobSpec], Errors], ...]] = (
    output,
    lorajob_places,
    lorajob_revision,
    evaluation_rows,
    dataset_template,
    dataset_of_task,
    preference,
    preference_loop,
    quantization,
    initialization,
    unused_lora_settings,
    method_blocks,
    adalora_ranks,
    target_modules,
    length,
    learning_rate,
    packing,
    gradient_checkpointing,
    devices,
    gpu_resource,
    evaluations,
    generation,
    checkpoints,
    continue_from,
    resume_from,
)
ADAPTERMERGE_RULES: Final[tuple[Callable[[AdapterMergeSpec], Errors], ...]] = (
    output,
    gpu_resource,
    merge_places,
    merge_inputs,
    merge_weights,
    merge_dataset,
    merge_density,
    merge_sign,
    merge_model,
)
