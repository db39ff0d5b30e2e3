"""What cannot be merged is refused here, from configs alone, before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tunery_api.adaptermerge import MergeMethod, MergeTarget
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate, retry
from tunery_common.errors import TuneryError
from tunery_common.inputs.misfit import CHANGED_BASE_INITS, VARIANTS
from tunery_trainer.merging.adapter_files import Adapter

MAX_ADAPTERS: Final = 32
LOW_RANK: Final = frozenset({"LORA", "ADALORA"})
MERGEABLE: Final = LOW_RANK | {"IA3"}
SAME_FIELDS: Final = ("task_type", "fan_in_fan_out", "bias", "modules_to_save", "trainable_token_indices")
"""Fields that say what the tensors mean: all adapters must agree on them."""
FILLED_IN: Final = {"bias": "none"}
"""What PEFT takes for a field that a configuration does not have; for others as good as nothing."""
UNMERGEABLE_FIELDS: Final = ("target_parameters", *VARIANTS)


_CORRECT: Final = recreate("Correct the named fields")
_TOGETHER: Final = recreate("Name only adapters that can be merged with one another", "adapters")
_ONE_NAME: Final = retry("If they have one base under two names, train them again with the same model.servedName")


class Problem(NamedTuple):
    """A reason against a merge."""

    text: str
    remedies: tuple[Remedy, ...] = (_TOGETHER,)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an adapter without its weights."""

    label: str
    """`spec.adapters[0] (uri)`."""
    config: dict[str, Any]
    weight: float = 1.0
    revision: str | None = None
    """Revision of the base model: the lineage's, else the config's."""
    quantization: str | None = None
    """How the base was quantised in training, from the lineage; None: not, or not known."""
    unverified: bool = False
    """It was made elsewhere: what it says of its base proves nothing, and is compared with nothing."""

    @property
    def peft_type(self) -> str:
        return str(self.config.get("peft_type", "")).upper()


def check(facts: Sequence[Facts], method: MergeMethod, rank: int | None, into: MergeTarget) -> None:
    """Raise TuneryError(InvalidSpec) that lists everything that speaks against the merge."""
    problems = find_problems(facts, method, rank, into)
    _raise(problems)


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        remedies = {remedy.text: remedy for problem in problems for remedy in problem.remedies}
        message = "; ".join(problem.text for problem in problems)
        raise TuneryError(FailureReason.INVALID_SPEC, message, *remedies.values())


def find_problems(facts: Sequence[Facts], method: MergeMethod, rank: int | None, into: MergeTarget) -> list[Problem]:
    """Return every reason against the merge, each with the adapters and fields concerned."""
    if not 1 <= len(facts) <= MAX_ADAPTERS:
        text = f"spec.adapters: {len(facts)} adapters; a merge takes 1 to {MAX_ADAPTERS}"
        return [Problem(text, (_CORRECT,))]
    problems = [Problem(text) for fact in facts for text in _alone(fact, alone=len(facts) == 1, into=into)]
    problems += [*_methods(facts, method, rank), *_between(facts, into)]
    if sum(fact.weight for fact in facts) == 0 and any(_has_full_tensors(fact.config) for fact in facts):
        text = "spec.adapters: the weights sum to 0, so modulesToSave have no weighted mean"
        problems.append(Problem(text, (_CORRECT,)))
    return problems


def _between(facts: Sequence[Facts], into: MergeTarget) -> list[Problem]:
    """Return what the adapters disagree on."""
    known = [fact for fact in facts if not fact.unverified]
    bases = _differences(known, "base_model_name_or_path", lambda f: _base_name(f.config))
    problems: list[str] = []
    if all(fact.revision for fact in known):
        problems += _differences(known, "the base model's revision", lambda f: f.revision)
    for name in SAME_FIELDS:
        # Plain PEFT leaves the task open where nobody says it.
        told = [fact for fact in facts if name != "task_type" or fact.config.get(name) or not fact.unverified]
        problems += _differences(told, name, lambda f, name=name: _canonical(f.config.get(name, FILLED_IN.get(name))))  # type: ignore[misc]
    if into == MergeTarget.MODEL:
        problems += _differences(known, "the quantisation trained with (lineage)", lambda f: f.quantization)
    return [Problem(text, (_ONE_NAME, _TOGETHER)) for text in bases] + [Problem(text) for text in problems]


def check_tensors(adapters: Sequence[Adapter]) -> None:
    """Refuse what only the headers of the weights show: whole tensors that not all have, shapes that differ."""
    problems: list[str] = []
    for name in dict.fromkeys(name for adapter in adapters for name in adapter.full):
        missing = [adapter.label for adapter in adapters if name not in adapter.full]
        if missing:
            problems.append(f"{', '.join(missing)}: has no {name}, which other adapters replace as a whole")
    problems += _shape_problems(adapters)
    _raise([Problem(text) for text in problems])


def _alone(fact: Facts, *, alone: bool, into: MergeTarget) -> list[str]:
    """What speaks against one adapter by itself."""
    config, problems = fact.config, []
    if fact.peft_type not in MERGEABLE:
        problems.append(f"{fact.label}: a {fact.peft_type or 'nameless'} adapter cannot be merged (peft_type)")
    if config.get("use_dora") and not (alone and into == MergeTarget.MODEL and fact.weight == 1):
        problems.append(
            f"{fact.label}: a DoRA adapter (use_dora) cannot be merged with others or into an adapter; "
            "merge it alone, with weight 1 and spec.into: Model"
        )
    problems += [
        f"{fact.label}: {name} is set, which cannot be merged" for name in UNMERGEABLE_FIELDS if config.get(name)
    ]
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(CHANGED_BASE_INITS):
        problems.append(
            f"{fact.label}: init_lora_weights is {init!r}: the adapter is relative to a changed base; "
            "convert it to a plain LoRA first"
        )
    return problems


def _methods(facts: Sequence[Facts], method: MergeMethod, rank: int | None) -> list[Problem]:
    """Return the reasons against the method with these kinds of adapters."""
    types = {fact.peft_type for fact in facts} & MERGEABLE
    if any(fact.config.get("use_dora") for fact in facts) and (method != MergeMethod.LINEAR or rank is not None):
        text = "spec.method: a DoRA adapter goes into the model as it is: with Linear and without spec.rank"
        return [Problem(text, (_CORRECT,))]
    if "IA3" not in types:
        return []
    named = ", ".join(fact.label for fact in facts if fact.peft_type == "IA3")
    if types != {"IA3"}:
        return [Problem(f"{named}: IA3 adapters can only be merged with IA3 adapters (peft_type)")]
    problems = []
    if method != MergeMethod.LINEAR:
        problems.append(f"spec.method: IA3 adapters ({named}) can only be merged with Linear")
    if rank is not None:
        problems.append(f"spec.rank: IA3 adapters ({named}) have no rank")
    return [Problem(text, (_CORRECT,)) for text in problems]


def _differences(facts: Sequence[Facts], what: str, value: Callable[[Facts], object]) -> list[str]:
    """Name the adapters that disagree, grouped by what they say."""
    groups: dict[str, list[str]] = {}
    for fact in facts:
        groups.setdefault(repr(value(fact)), []).append(fact.label)
    if len(groups) < 2:
        return []
    said = ", ".join(f"{shown} in {' and '.join(labels)}" for shown, labels in groups.items())
    return [f"{what} differs: {said}"]


def _base_name(config: dict[str, Any]) -> str:
    return str(config.get("base_model_name_or_path") or "").rstrip("/")


def _canonical(value: object) -> object:
    """An empty value is as good as none, and the order of a list says nothing."""
    if not value:
        return None
    return sorted(map(str, value)) if isinstance(value, list) else value


def _has_full_tensors(config: dict[str, Any]) -> bool:
    trained_bias = config.get("bias", "none") != "none"
    return bool(config.get("modules_to_save") or config.get("trainable_token_indices") or trained_bias)


def _shape_problems(adapters: Sequence[Adapter]) -> list[str]:
    seen: dict[str, tuple[tuple[int, ...], str]] = {}
    problems = []
    for adapter in adapters:
        for name, shape in _outer_shapes(adapter).items():
            first, label = seen.setdefault(name, (shape, adapter.label))
            if first != shape:
                problems.append(f"{name} has shape {first} in {label} and {shape} in {adapter.label}")
    return problems


def _outer_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """The shape of what each module's tensors change, and of each whole tensor."""
    shapes = {name: adapter.tensors[key].shape for name, key in adapter.full.items()}
    return shapes | {name: adapter.outer_shape(module) for name, module in adapter.modules.items()}
