"""The rules that the API server itself checks, in CEL, beside the class that each hangs on."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunery_api.adaptermerge import ELECTING, AdapterMergeSpec, MergeDataset, MergeInput, MergeResourcesSpec
from tunery_api.adapterserver import (
    DEFAULT_IN_BATCH,
    DEFAULT_LOADED,
    ENGINE_ARGS,
    ENGINE_RANKS,
    AccessSpec,
    AdapterSelector,
    AdapterServerSpec,
    AdapterSource,
    Alias,
    ClientAccess,
    EngineSpec,
    LabelRequirement,
    RolloutSpec,
)
from tunery_api.fields import ApiModel
from tunery_api.inputs import FORMATS_OF_TASK, DatasetEvaluation, DatasetSpec, ModelSpec, SecretKeyReference
from tunery_api.lorajob import FSDP_BITS, FSDP_GPUS, PASSES_ARE_SHARED, SAID_OF_PASSES, LoRAJobSpec
from tunery_api.lorasweep import LoRASweepSpec, ParameterSpec, RangeSpec
from tunery_api.methods import READ_OF_LORA, AdaLoraSpec, LoraSpec, Method
from tunery_api.placement import FOREIGN_ACCELERATORS, NO_KEY, NO_SECONDS, NO_VALUE, ResourcesSpec, Toleration
from tunery_api.preference import READ_OF_PREFERENCE, PreferenceSpec, TrainingTask
from tunery_api.training import CheckpointSpec, ContinueFrom, EvaluationSpec, ResumeFrom, TrainingSpec


class CelRule(NamedTuple):
    """One x-kubernetes-validations entry."""

    rule: str
    message: str
    once: bool = False
    """Asked only as a block comes to be: one that is older than the rule is to be written all the same."""
    said: str = ""
    """In CEL, the message with the numbers of what was written; `message` is for the reference, and where it fails."""


_METHOD: Final = "self.?method.orValue('Auto')"
_TASK: Final = "self.?task.orValue('SFT')"
_INIT: Final = "self.?lora.?init.orValue('Default')"
_NO_FSDP: Final = "self.?training.?parallelism.orValue('') != 'FSDP'"
_FORMAT: Final = "self.?dataset.?format.orValue('Auto')"
_MERGE_METHOD: Final = "self.?method.orValue('Linear')"
_INTO: Final = "self.?into.orValue('Adapter')"
_WORDS: Final = "['all-linear', 'attention', 'mlp', 'query-value']"
_EXACTLY_ONE: Final = CelRule("has(self.loraJobRef) != has(self.uri)", "takes exactly one of loraJobRef and uri")
_HAS_OUTPUT: Final = "has(self.output) && has(self.output.uri)"  # the bounds of an optional are not known to its cost
_NVIDIA: Final = CelRule(
    f"!has(self.gpuResource) || !{list(FOREIGN_ACCELERATORS)}.exists(it, self.gpuResource.startsWith(it))",
    "gpuResource must be NVIDIA GPUs, which the trainer's image needs; or set gpus: 0",
)
_REFERENCE: Final = [
    _EXACTLY_ONE,
    CelRule("!has(self.sha256) || has(self.uri)", "sha256 goes with uri"),
    CelRule("!has(self.revision) || self.?uri.orValue('').startsWith('hf://')", "revision is for hf:// adapters only"),
]
_KEY: Final = "self.{0} != '.' && !self.{0}.startsWith('..')"
_NO_KEY: Final = "is no name that a key of a Secret can have: no such name is a dot, or begins with two"
_RANKS: Final = ", ".join(map(str, ENGINE_RANKS))
_LORA_FIELDS: Final = tuple(str(info.alias) for info in LoraSpec.model_fields.values())
_ITS_OWN: Final = "output.uri is no place of its own beside the model's, which stays: choose another place"


def _place(uri: str) -> str:
    """Return a URI without the slashes at its end: PLAIN_PATH rules out all other spellings."""
    return f"{uri}.find('^.*[^/]')"


def _apart(uri: str) -> str:
    """Return whether a URI and the output's are no places of which one lies within the other, as in fields.overlap."""
    one, output = (f"({_place(each)} + '/')" for each in (uri, "self.output.uri"))
    return f"!({_HAS_OUTPUT}) || !({one}.startsWith({output}) || {output}.startsWith({one}))"


def _continues_elsewhere(run: str) -> CelRule:
    """Return the rule that a training run does not replace the adapter that it begins with."""
    source = f"{run}.continueFrom"
    return CelRule(
        f"!({_HAS_OUTPUT} && has({source}) && has({source}.uri)) || "
        f"{_place(f'{source}.uri')} != {_place('self.output.uri')}",
        "output.uri is the adapter of continueFrom, which stays: choose another place",
        once=True,
    )


def _reads_of_lora(method: Method, message: str) -> CelRule:
    """Return the rule that a setting which the method would not look at is refused."""
    unread = [f"has(self.lora.{name})" for name in _LORA_FIELDS if name not in READ_OF_LORA[method]]
    return CelRule(f"{_METHOD} != '{method}' || !has(self.lora) || !({' || '.join(unread)})", message)


def _reads_of_preference(task: TrainingTask, message: str) -> CelRule:
    """Return the rule that a setting which the task would not look at is refused."""
    fields = (str(info.alias) for info in PreferenceSpec.model_fields.values())
    unread = [f"has(self.preference.{name})" for name in fields if name not in READ_OF_PREFERENCE[task]]
    return CelRule(f"{_TASK} != '{task}' || !has(self.preference) || !({' || '.join(unread)})", message)


def _formats(task: TrainingTask) -> str:
    """Return the formats of a task, and Auto, as a list in CEL."""
    return str(["Auto", *map(str, FORMATS_OF_TASK[task])])


def _goes_with(block: str, method: str) -> CelRule:
    return CelRule(f"!has(self.{block}) || {_METHOD} == '{method}'", f"{block} goes with method: {method}")


CEL_RULES: Final[dict[type[ApiModel], list[CelRule]]] = {
    ModelSpec: [CelRule("!has(self.revision) || self.uri.startsWith('hf://')", "revision is for hf:// models only")],
    DatasetSpec: [
        CelRule(
            "self.?template.orValue('Chat') != 'Plain' || !(self.?format.orValue('Auto') in ['Messages', 'ShareGPT'])",
            "template Plain is for prompts with completions, not for formats Messages and ShareGPT",
        ),
    ],
    DatasetEvaluation: [
        CelRule(
            "[has(self.uri), has(self.split), has(self.fraction)].filter(set, set).size() <= 1",
            "takes one of uri, split and fraction",
        ),
        CelRule("!has(self.sha256) || has(self.uri) || has(self.split)", "sha256 goes with uri or split"),
    ],
    LoraSpec: [
        CelRule(
            f"!has(self.targetModules) || self.targetModules.size() == 1 || "
            f"self.targetModules.all(name, !(name in {_WORDS}))",
            "targetModules takes module names, or one word alone",
        ),
    ],
    AdaLoraSpec: [
        CelRule(
            "!has(self.initialRank) || self.initialRank > (has(self.targetRank) ? self.targetRank : 8)",
            "initialRank must be above targetRank",
        ),
        CelRule(
            "has(self.initialRank) || !has(self.targetRank) || self.targetRank > 1",
            "targetRank must be above 1, or initialRank above targetRank",
        ),
    ],
    ResourcesSpec: [_NVIDIA],
    MergeResourcesSpec: [_NVIDIA],
    Toleration: [
        CelRule("self.?operator.orValue('Equal') != 'Exists' || self.?value.orValue('') == ''", NO_VALUE),
        CelRule("self.?operator.orValue('Equal') == 'Exists' || has(self.key)", NO_KEY),
        CelRule("!has(self.tolerationSeconds) || self.?effect.orValue('') == 'NoExecute'", NO_SECONDS),
    ],
    TrainingSpec: [
        CelRule("!(has(self.epochs) && has(self.maxSteps))", "maxSteps cannot be set together with epochs"),
        CelRule(
            "!(has(self.packing) && self.packing && has(self.groupByLength) && self.groupByLength)",
            "groupByLength is needless with packing; leave it out, or set packing: false",
        ),
    ],
    EvaluationSpec: [
        CelRule("!has(self.times) || !has(self.everySteps)", "everySteps cannot be set together with times")
    ],
    CheckpointSpec: [
        CelRule(
            "!has(self.everySteps) || !has(self.everyMinutes)", "everyMinutes cannot be set together with everySteps"
        )
    ],
    ContinueFrom: _REFERENCE,
    ResumeFrom: [_EXACTLY_ONE],
    LoRAJobSpec: [
        CelRule(f"!has(self.preference) || {_TASK} != 'SFT'", "preference goes with task: DPO, ORPO or KTO"),
        _reads_of_preference(TrainingTask.DPO, "DPO reads preference.beta and lossType only"),
        _reads_of_preference(TrainingTask.ORPO, "ORPO reads preference.beta only"),
        _reads_of_preference(TrainingTask.KTO, "KTO reads preference.beta, desirableWeight and undesirableWeight only"),
        CelRule(
            f"{_FORMAT} in ({_TASK} == 'SFT' ? {_formats(TrainingTask.SFT)} : "
            f"{_TASK} == 'KTO' ? {_formats(TrainingTask.KTO)} : {_formats(TrainingTask.DPO)})",
            "dataset.format is of another task: Preference is for DPO, ORPO and KTO, UnpairedPreference for KTO, "
            "the others for SFT",
        ),
        CelRule(
            f"{_TASK} == 'SFT' || !self.?training.?packing.orValue(false)",
            "training.packing must be false or left out with DPO, ORPO and KTO",
        ),
        CelRule(
            f"{_TASK} == 'SFT' || self.?training.?loss.orValue('') != 'All'",
            "training.loss All is for task: SFT only",
        ),
        CelRule(
            f"{_TASK} == 'SFT' || self.?training.?neftuneNoiseAlpha.orValue(0.0) == 0.0",
            "training.neftuneNoiseAlpha is for task: SFT only",
        ),
        CelRule(
            f"{_TASK} == 'SFT' || !self.?evaluation.?generation.hasValue()",
            "evaluation.generation is for task: SFT only",
        ),
        CelRule(
            "!self.?evaluation.?generation.hasValue() || self.?training.?loss.orValue('') != 'All'",
            "evaluation.generation needs training.loss Completion",
        ),
        CelRule(f"{_TASK} == 'SFT' || !has(self.preset)", "preset is for task: SFT only"),
        _goes_with("adalora", "AdaLoRA"),
        _goes_with("promptTuning", "PromptTuning"),
        _goes_with("prefixTuning", "PrefixTuning"),
        CelRule(
            f"!has(self.quantization) || !({_METHOD} in ['LoRA', 'DoRA'])",
            "quantization goes with QLoRA and QDoRA in place of LoRA and DoRA",
        ),
        CelRule(
            f"{_METHOD} != 'QDoRA' || self.?quantization.?type.orValue('') != 'Int8'",
            "QDoRA works on 4 bits; use NF4 or FP4, or method: QLoRA",
        ),
        CelRule(
            f"!({_INIT} in ['PiSSA', 'OLoRA']) || {_METHOD} in ['LoRA', 'DoRA']",
            "init PiSSA and OLoRA need the unquantised base: method LoRA or DoRA",
        ),
        CelRule(f"{_INIT} != 'LoftQ' || {_METHOD} == 'QLoRA'", "init LoftQ needs method: QLoRA"),
        CelRule(
            f"{_INIT} != 'LoftQ' || self.?quantization.?type.orValue('') != 'Int8'",
            "init LoftQ makes up for 4 bits; use quantization.type NF4 or FP4",
        ),
        _reads_of_lora(Method.ADALORA, "AdaLoRA reads lora.alpha, dropout, targetModules and modulesToSave only"),
        _reads_of_lora(Method.IA3, "IA3 reads lora.targetModules and modulesToSave only"),
        _reads_of_lora(Method.PROMPT_TUNING, "PromptTuning reads nothing of lora; leave it out"),
        _reads_of_lora(Method.PREFIX_TUNING, "PrefixTuning reads nothing of lora; leave it out"),
        CelRule(
            PASSES_ARE_SHARED,
            "training.gradientAccumulation must be a multiple of the devices that share the passes: resources.gpus x "
            "resources.nodes, or resources.nodes where gpus is 0",
            said=SAID_OF_PASSES,
        ),
        CelRule(f"{_NO_FSDP} || self.?resources.?gpus.orValue(1) > 1", f"training.parallelism: {FSDP_GPUS}"),
        CelRule(f"{_NO_FSDP} || self.?quantization.?type.orValue('') != 'Int8'", f"training.parallelism: {FSDP_BITS}"),
        CelRule(
            "self.?training.?precision.orValue('') != 'Float16' || self.?resources.?gpus.orValue(1) > 0",
            "training.precision Float16 needs a GPU; with resources.gpus: 0 use Auto, Float32 or BFloat16",
        ),
        CelRule(
            f"!({_METHOD} in ['PromptTuning', 'PrefixTuning', 'IA3']) || "
            "!self.?training.?scaleLearningRateWithRank.orValue(false)",
            "training.scaleLearningRateWithRank is for methods with a rank; set learningRate itself",
        ),
        CelRule(
            "!has(self.continueFrom) || !self.?prefixTuning.?projection.orValue(false)",
            "a published prefix has no projection left; leave prefixTuning.projection out to continue one",
        ),
        CelRule(
            f"!has(self.continueFrom) || {_INIT} == 'Default'",
            "continueFrom starts from the named adapter's weights; leave lora.init out",
        ),
        CelRule(_apart("self.model.uri"), _ITS_OWN, once=True),
        _continues_elsewhere("self"),
        CelRule(f"!has(self.continueFrom) || {_METHOD} != 'AdaLoRA'", "AdaLoRA cannot continueFrom an adapter"),
        CelRule(
            "!(has(self.continueFrom) && has(self.resumeFrom))",
            "resumeFrom cannot be set together with continueFrom; keep one of the two",
        ),
        CelRule(
            f"!({_METHOD} in ['PromptTuning', 'PrefixTuning']) || !self.?training.?packing.orValue(false)",
            "training.packing must be false or left out with prompt and prefix tuning",
        ),
        CelRule(
            f"{_METHOD} != 'PrefixTuning' || !self.?training.?gradientCheckpointing.orValue(false)",
            "training.gradientCheckpointing must be false or left out with PrefixTuning",
        ),
    ],
    MergeInput: _REFERENCE,
    MergeDataset: [
        CelRule(
            f"self.?format.orValue('Auto') in {_formats(TrainingTask.SFT)}",
            "a merge is measured by the loss on rows of SFT, not of preference",
        ),
    ],
    AdapterMergeSpec: [
        CelRule(
            "self.adapters.all(a, has(a.weight)) || self.adapters.all(a, !has(a.weight))",
            "give a weight to each adapter, or to none",
        ),
        CelRule(f"!has(self.density) || {_MERGE_METHOD} != 'Linear'", "density is not for Linear, which keeps all"),
        CelRule(
            f"!has(self.majoritySign) || {_MERGE_METHOD} in {sorted(map(str, ELECTING))}",
            "majoritySign is for TIES, DARETIES, KnOTSTIES and KnOTSDARETIES only",
        ),
        CelRule(
            f"!has(self.model) || {_INTO} == 'Model' || has(self.evaluation) || self.adapters.exists(a, has(a.uri))",
            "model is for into: Model, for evaluation and to check adapters with a uri only",
        ),
        CelRule(f"!has(self.model) || {_apart('self.model.uri')}", _ITS_OWN, once=True),
        CelRule(
            f"!({_HAS_OUTPUT}) || "
            f"!self.adapters.exists(a, has(a.uri) && {_place('a.uri')} == {_place('self.output.uri')})",
            "output.uri is one of the adapters, which stay: choose another place",
            once=True,
        ),
    ],
    AdapterSource: [
        CelRule(
            "[has(self.loraJobRef), has(self.adapterMergeRef), has(self.uri)].exists_one(set, set)",
            "takes exactly one of loraJobRef, adapterMergeRef and uri",
        ),
        CelRule("!has(self.manifestSha256) || has(self.uri)", "manifestSha256 goes with uri"),
        CelRule("!self.name.contains('..')", "name must not have two dots in a row"),
    ],
    LabelRequirement: [
        CelRule(
            "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values)",
            "values goes with In and NotIn, which need it",
        ),
    ],
    AdapterSelector: [
        CelRule(
            "(has(self.matchLabels) && self.matchLabels.size() > 0) || "
            "(has(self.matchExpressions) && self.matchExpressions.size() > 0)",
            "names no label: it would select everything",
        ),
    ],
    EngineSpec: [
        CelRule(f"!has(self.maxRank) || self.maxRank in {list(ENGINE_RANKS)}", f"maxRank must be one of {_RANKS}"),
        CelRule(
            f"(has(self.maxLoadedAdapters) ? self.maxLoadedAdapters : {DEFAULT_LOADED}) >= "
            f"(has(self.maxAdaptersInBatch) ? self.maxAdaptersInBatch : {DEFAULT_IN_BATCH})",
            f"maxLoadedAdapters must be at least maxAdaptersInBatch, by default {DEFAULT_IN_BATCH}",
        ),
        CelRule(
            f"!has(self.args) || self.args.all(a, {list(ENGINE_ARGS)}.exists(flag, a == flag || "
            "a.startsWith(flag + '=')) && !a.contains('/'))",
            "args takes --flag or --flag=value, of the flags that `kubectl explain` lists, and no path",
        ),
    ],
    RolloutSpec: [
        CelRule(
            "(has(self.maxSurge) ? self.maxSurge : 1) + (has(self.maxUnavailable) ? self.maxUnavailable : 0) > 0",
            "maxSurge and maxUnavailable cannot both be 0",
        ),
    ],
    Alias: [
        CelRule("!self.name.contains('..')", "name must not have two dots in a row"),
        CelRule(
            "self.targets.exists(t, !has(t.weight) || t.weight > 0)",
            "all targets have weight 0: no request could go anywhere",
        ),
    ],
    AccessSpec: [
        CelRule(
            "!has(self.clients) || has(self.apiKeysSecretRef)",
            "clients needs apiKeysSecretRef: without keys nobody knows who asks",
        ),
    ],
    RangeSpec: [
        CelRule("self.min < self.max", "max must be above min"),
        CelRule("!self.?log.orValue(false) || self.min > 0.0", "min must be above 0 with log: true"),
        CelRule("!self.?log.orValue(false) || !has(self.step)", "step cannot be set together with log"),
    ],
    # The API server's CEL declares no field without a type, but dyn() can ask whether it is set.
    ParameterSpec: [CelRule("has(self.range) != has(dyn(self).choices)", "takes exactly one of range and choices")],
    LoRASweepSpec: [
        CelRule(_apart("self.template.model.uri"), _ITS_OWN, once=True),
        _continues_elsewhere("self.template"),
        CelRule(
            "has(self.preset) || (has(self.parameters) && self.parameters.size() > 0)",
            "names nothing to search; list fields of the template as parameters, or set preset: Guide",
        ),
        CelRule(
            "!has(self.parameters) || self.parameters.all(p, self.parameters.exists_one(q, q.path == p.path))",
            "a path is a parameter twice; keep one of the two",
        ),
        CelRule(
            "!has(self.budget) || self.template.?resources.?gpus.orValue(1) > 0",
            "budget counts the seconds of GPUs, and template.resources.gpus is 0; use activeDeadlineSeconds instead",
        ),
    ],
    ClientAccess: [CelRule(_KEY.format("name"), f"name {_NO_KEY}")],
    SecretKeyReference: [CelRule(_KEY.format("key"), f"key {_NO_KEY}")],
    AdapterServerSpec: [
        CelRule(
            "!has(self.aliases) || !has(self.adapters) || "
            "self.aliases.all(a, !self.adapters.exists(x, x.name == a.name))",
            "an alias has the name of an adapter",
        ),
        CelRule(
            "!has(self.aliases) || self.aliases.all(a, a.targets.all(t, !self.aliases.exists(b, b.name == t.adapter)))",
            "an alias leads to adapters, not to another alias",
        ),
        CelRule(
            "!has(self.adapters) || !has(self.model.servedName) || "
            "self.adapters.all(a, a.name != self.model.servedName)",
            "an adapter has the name of the base model",
        ),
    ],
}
"""By class; rules.py says the same in Python, since an object may predate a rule."""
