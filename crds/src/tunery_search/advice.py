"""What a failed trial advises, said of its sweep: its fields are those of spec.template, and that is final."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, get_args

from tunery_api.fields import ApiModel
from tunery_api.lorasweep import TrialTemplate
from tunery_api.reasons import FailureReason, advice_for

_R = FailureReason
NEW_SWEEP: Final = "new sweep"
"""Stands in every hint that has the template changed."""
_RESOURCES: Final = "spec.template.resources"

_USUAL: Final[Mapping[FailureReason, str]] = {
    _R.INVALID_SPEC: "Correct the named field, of spec.template or spec.parameters, in a new sweep.",
    _R.MODEL_GATED: "Accept the model's terms on its hub page, with the account whose HF_TOKEN is in the Secret of "
    "spec.template.model.secretRef.",
    _R.UNSCHEDULABLE: "Free or add a node that offers what is asked for: the trial goes on by itself. What the "
    f"scheduling of its LoRAJob, its memory and its disk ask for may change as it waits, for it alone; other "
    f"spec.template.scheduling or {_RESOURCES} for all trials need a new sweep.",
    _R.GPU_UNAVAILABLE: "Have the node's GPU looked at (driver, container toolkit, device plugin), and retry. "
    "spec.template.scheduling keeps trials off that node, or names the RuntimeClass that GPUs need "
    f"(runtimeClassName), in a new sweep. Where the cluster has no GPU that works, {_RESOURCES}.gpus: 0 in a new sweep "
    "computes on the CPU.",
    _R.GPU_FAULT: "Have the GPU of that node looked at, or keep pods off it (kubectl cordon), and retry; "
    "spec.template.scheduling keeps trials off it in a new sweep.",
    _R.OUT_OF_MEMORY: f"Raise {_RESOURCES}.memory in a new sweep; the container was killed for using more.",
    _R.KILLED: "Look at what ends processes on the node, and retry; not every kill for memory is told as one: where it "
    f"was for that, raise {_RESOURCES}.memory in a new sweep.",
    _R.DISK_FULL: f"Raise {_RESOURCES}.ephemeralStorage in a new sweep.",
    _R.ADAPTER_UNSUPPORTED: "Name another adapter in spec.template.continueFrom, or leave it out to train a new one, "
    "in a new sweep.",
    _R.ADAPTER_MISSING: "Publish the named adapter there, with its manifest.json or as PEFT saves it, and retry; "
    "another spec.template.continueFrom needs a new sweep.",
    _R.BASE_MISMATCH: "Name the base model that the adapter was trained on in spec.template.model, or another adapter "
    "in spec.template.continueFrom, in a new sweep.",
    _R.PLATFORM_CHANGED: "Have whoever runs Tunery restore the setting that is named, or put the field back that was "
    "changed, and retry.",
    _R.NODE_PRESSURE: "Look at what else uses up the node that is named, and retry.",
    _R.NODE_LOST: "Look at the node, and retry.",
    _R.DEADLINE_EXCEEDED: "Raise spec.template.activeDeadlineSeconds by what is still needed, in a new sweep.",
    _R.RETRIES_EXHAUSTED: "Mend what the message of the last attempt says, and retry; or raise spec.template.retries "
    "in a new sweep.",
    _R.INTERNAL_ERROR: "This is a defect of Tunery: please report it with the trial's log.",
}
"""Where what a reason advises of a job is not just said of the template; of two of the last it is of a server."""


def _fields() -> Iterator[str]:
    """Yield each field of the template, and each of its blocks', as a manifest names them."""
    for info in TrialTemplate.model_fields.values():
        yield str(info.alias)
        for block in (info.annotation, *get_args(info.annotation)):
            if isinstance(block, type) and issubclass(block, ApiModel):
                yield from (f"{info.alias}.{each.alias}" for each in block.model_fields.values())


_FIELDS: Final = frozenset(_fields())
_SPEC: Final = re.compile(r"(?<![\w./-])spec\.(?=([a-zA-Z]+)\b)(?!template\b)")
_BLOCK: Final = re.compile(r"(?<![\w./-])(?=([a-z][a-zA-Z]*\.[a-z][a-zA-Z]*)\b(?![-/]))")
_NAMED: Final = re.compile(r"\bspec\.template\.([a-zA-Z]+(?:\.[a-zA-Z]+)?)")
_MAY: Final = r"may change (?:while no pod runs|as it waits|as long as no pod runs)"
_LATER: Final = re.compile(rf",? which {_MAY}|; it {_MAY}")
"""Said of fields of a LoRAJob; those of a template may not."""
_SENTENCE: Final = re.compile(r"(?:[^.]|\.(?=\S))+\.?\s*")
_CLAUSE: Final = re.compile(r"[^;]+;?\s*")
_CHANGES: Final = re.compile(
    r"\b(?:raise|lower|set|name|leave|use|change|say|correct|try)\b.*\bspec\.template\.(?!\S*secretRef)", re.IGNORECASE
)
_COMPARED: Final = frozenset(
    {"model", "dataset", "task", "preference", "evaluation", "continueFrom"}
    | {"training.maxLength", "training.loss", "training.seed"}
)
"""With others of these, losses of two sweeps cannot be compared."""
_SEARCHED: Final = " in spec.parameters"


def in_template(text: str) -> str:
    """Return a text about a trial's fields with the paths that they have in the manifest of its sweep."""
    text = _SPEC.sub(lambda found: "spec.template." if found[1] in _FIELDS else found[0], text)
    return _BLOCK.sub(lambda found: "spec.template." if found[1] in _FIELDS else "", text)


def in_sweep(text: str, searched: Iterable[str]) -> str:
    """Return a text about a trial's fields with the places of the manifest of its sweep, of which some are searched."""
    text = in_template(text)
    for path in searched:
        text = re.sub(rf"\bspec\.template\.{re.escape(path)}\b(?!\.\w)", path + _SEARCHED, text)
    return text


def of_sweep(reason: str, hint: str | None, searched: Iterable[str] = ()) -> str:
    """Return what to do about a sweep whose trial failed for that reason; `hint` is what was said of the trial.

    What is mended outside of the template may be tried again; what is to change in it needs a new sweep, and so does
    what spec.parameters searches, `searched`.
    """
    usual = advice_for(reason).hint
    if reason == _R.BUDGET_EXHAUSTED:
        return hint or usual
    if hint is None or renamed(hint) == renamed(usual):
        said = {each.value: text for each, text in _USUAL.items()}.get(reason) or _said(usual)
    else:
        said = hint if hint in _USUAL.values() else _said(hint)
    return in_sweep(said, searched)


def learns(hint: str) -> bool:
    """Tell whether the new sweep that a hint asks for can learn from the trials of this one, by warmStartFrom."""
    named = _NAMED.findall(hint)
    other = any(path in _COMPARED or path.partition(".")[0] in _COMPARED for path in named)
    return NEW_SWEEP in hint and not other and (bool(named) or _SEARCHED in hint)


def _said(hint: str) -> str:
    told = in_template(_LATER.sub("", renamed(hint)))
    return "".join(map(_sentence, _SENTENCE.findall(told)))


def _sentence(text: str) -> str:
    """Return a sentence of a hint: where it has a field of the template changed, no retry comes to that."""
    if "spec.template." in text or "manifest" in text:
        text = re.sub(f"both {_MAY}", f"the chart's may change as it waits, the template's in a {NEW_SWEEP} only", text)
        text = re.sub(f"(?<!chart's ){_MAY}", f"can change in a {NEW_SWEEP} only", text)
    parts, asked = _CLAUSE.findall(text), NEW_SWEEP in text
    return "".join(_clause(part, asked=asked) if _CHANGES.search(part) else part for part in parts)


def _clause(text: str, *, asked: bool) -> str:
    said = text.rstrip(".; ")
    bare = re.sub(r",? and retry$", "", said)
    return f"{bare}{'' if asked else f' in a {NEW_SWEEP}'}{text[len(said) :]}"


def renamed(hint: str) -> str:
    """Return a hint of a job that belongs to a sweep: another job is another sweep."""
    return re.sub(r"\bnew job(s?)\b", rf"{NEW_SWEEP}\1", hint)
