"""The guide's checklist: what the plan says before training, and what training itself has shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tunery_api.findings import CHECK_PENDING, TRAINING_CHECKS, CheckName, CheckResult, CheckStatus
from tunery_api.measured import change_text, share_text
from tunery_api.methods import LORA_FAMILY, PREFERENCE_TASKS, PROMPT_LEARNING
from tunery_api.redact import shorten
from tunery_api.training import Loss
from tunery_trainer.data.options import DatasetReport
from tunery_trainer.diagnosis.advice import decimal, experts_adapted, usual_rates
from tunery_trainer.diagnosis.paired import FEWEST_ROWS, Difference
from tunery_trainer.diagnosis.speed import FEW_STEPS, PADDING, TIGHT, Memory
from tunery_trainer.settings.presets import guideline_for
from tunery_trainer.settings.types import RunSettings, SettingSource
from tunery_trainer.settings.units import human_bytes

ALPHA: Final = (0.5, 4.0)
"""Alpha by rank; the guide takes 2."""
FEW_ROWS: Final = 1000
MANY_EPOCHS: Final = 3
LOSS_TOKENS: Final = 0.02
UNLEARNABLE: Final = 0.01
CUT: Final = 0.05
DUPLICATES: Final = 0.05
_MAX_TEXT: Final = 500
_SHOWN: Final = 8
_NOTHING_TRAINED: Final = "nothing was left to train"

_N = CheckName


@dataclass(frozen=True)
class Planned:
    """What is known before training."""

    settings: RunSettings
    steps: int
    targets: Sequence[str]
    """Modules that carry the adapter."""
    trainable: int
    """Parameters that are trained."""
    data: DatasetReport
    """Tokenised."""
    held_out: int | None = None
    """Rows; None: not counted yet."""
    fraction: float | None = None
    """What share of the rows is held out; None: a set of their own."""
    needed: int | None = None
    """Bytes, by the estimate; None: there is none."""
    memory_known: bool = True
    """Whether anybody has told how much the device has."""

    def source(self, field: str) -> str | None:
        """Return where a setting came from."""
        return next((value.source for value in self.settings.values if value.name == field), None)


@dataclass(frozen=True)
class Measured:
    """What training has shown."""

    base_changed: tuple[str, ...] = ()
    """Tensors of the base that are not what they were; of those that were compared."""
    base_compared: int = 0
    strangers: tuple[str, ...] = ()
    """Parameters that were trained and are neither the adapter's nor among lora.modulesToSave."""
    padding: float | None = None
    """Share of padding in what was trained on, 0 to 1; None: nothing was."""
    memory: Memory | None = None
    on_gpu: bool = False
    """Whether that is a GPU's."""
    ends: Ends | None = None
    before: float = math.nan
    after: float = math.nan
    """The held-out loss of the base, and of what is published."""
    change: Difference | None = None
    """The same, paired; None: too few rows."""
    ended: bool = True
    """Whether training has reached its end; before it the base is not compared with what it was."""


@dataclass(frozen=True)
class Ends:
    """What answers end with in training, and what ends one in serving."""

    stopping: float
    """Share of the answers that end with a token which ends generation, 0 to 1."""
    token: str
    """What most of them end with."""
    stops: tuple[str, ...]
    """What ends generation."""


def planned_checks(plan: Planned) -> list[CheckStatus]:
    """Return the whole checklist before training: what only training can tell is skipped, in so many words."""
    done = {check.name: check for check in (each(plan) for each in _PLANNED)}
    later = {name.value: _check(name, CheckResult.SKIPPED, CHECK_PENDING) for name in TRAINING_CHECKS}
    if not plan.memory_known:
        later[_N.BATCH_FITS.value] = _skipped(_N.BATCH_FITS, _unknown_memory(plan.needed))
    return [(done | later)[name.value] for name in CheckName]


def measured_checks(planned: Sequence[CheckStatus], found: Measured) -> list[CheckStatus]:
    """Return the checklist with what training has shown."""
    shown = {check.name: check for check in _measured(found)}
    return [shown.get(check.name, check) for check in planned]


def _unknown_memory(needed: int | None) -> str:
    takes = "" if needed is None else f"training takes about {human_bytes(needed)}; "
    return (
        f"{takes}what a GPU has is not known before training: gpuMemory of the chart tells it, or a "
        "spec.scheduling.nodeSelector with nvidia.com/gpu.memory"
    )


def _check(name: CheckName, result: CheckResult, message: str) -> CheckStatus:
    return CheckStatus(name=name.value, result=result.value, message=shorten(message, _MAX_TEXT))


def _judged(name: CheckName, good: bool, message: str) -> CheckStatus:
    return _check(name, CheckResult.PASSED if good else CheckResult.WARNING, message)


def _skipped(name: CheckName, why: str) -> CheckStatus:
    return _check(name, CheckResult.SKIPPED, why)


def _target_modules(plan: Planned) -> CheckStatus:
    if plan.settings.method in PROMPT_LEARNING:
        return _skipped(_N.TARGET_MODULES, f"{plan.settings.method} adapts no modules")
    more = f" and {len(plan.targets) - _SHOWN} more" if len(plan.targets) > _SHOWN else ""
    names = ", ".join(plan.targets[:_SHOWN])
    return _judged(_N.TARGET_MODULES, bool(plan.targets), f"{names}{more}; {plan.trainable:,} parameters are trained")


def _rank(plan: Planned) -> CheckStatus:
    rank = plan.settings.adapter.rank
    if not rank:
        return _skipped(_N.RANK, f"{plan.settings.method} has no rank")
    meant = guideline_for(rank)
    return _judged(_N.RANK, good=True, message=f"{rank}: {meant.name} ({meant.use})")


def _alpha(plan: Planned) -> CheckStatus:
    adapter = plan.settings.adapter
    if not adapter.rank:
        return _skipped(_N.ALPHA, f"{plan.settings.method} has no alpha")
    ratio = adapter.alpha / adapter.rank
    text = f"{adapter.alpha} is {ratio:.3g} times the rank; 2 is usual"
    fits = ALPHA[0] <= ratio <= ALPHA[1] or adapter.use_rslora
    return _judged(_N.ALPHA, fits or plan.source("lora.alpha") != SettingSource.MANIFEST, text)


def _dropout(plan: Planned) -> CheckStatus:
    adapter, epochs, rows = plan.settings.adapter, plan.settings.training.epochs, plan.data.rows
    if not adapter.rank:
        return _skipped(_N.DROPOUT, f"{plan.settings.method} has no dropout")
    if experts_adapted(plan.settings):
        return _skipped(_N.DROPOUT, "PEFT has no dropout for a mixture's experts")
    passes = epochs if epochs is not None else _passes(plan)
    many = adapter.dropout == 0 and passes >= MANY_EPOCHS and rows < FEW_ROWS
    if many and plan.settings.task not in PREFERENCE_TASKS:
        text = f"0, with {rows} rows that are passed {passes:.3g} times: they may be learned by heart"
        return _judged(_N.DROPOUT, good=False, message=text)
    return _judged(_N.DROPOUT, good=True, message=f"{adapter.dropout:g}")


def _passes(plan: Planned) -> float:
    tokens, training = plan.data.tokens, plan.settings.training
    rows = tokens.sequences if tokens else 0
    return plan.steps * training.batch_size * training.gradient_accumulation / rows if rows else 0.0


def _learning_rate(plan: Planned) -> CheckStatus:
    settings = plan.settings
    rate = settings.training.learning_rate
    least, most = usual_rates(settings)
    of = "" if settings.method in LORA_FAMILY else f" of {settings.method}"
    within = f"the usual range{of}, {decimal(least)} to {decimal(most)}"
    good = least <= rate <= most or plan.source("training.learningRate") != SettingSource.MANIFEST
    text = f"{decimal(rate)} is {'within' if least <= rate <= most else 'outside'} {within}"
    return _judged(_N.LEARNING_RATE, good, text)


def _accumulation(plan: Planned) -> CheckStatus:
    training, tokens = plan.settings.training, plan.data.tokens
    wanted, there = training.batch_size * training.gradient_accumulation, tokens.sequences if tokens else 0
    unit = "packed sequences" if tokens and tokens.packed else "rows"
    text = f"{training.batch_size} × {training.gradient_accumulation} = {wanted} {unit} a step, {plan.steps} steps"
    if wanted > there:
        return _judged(_N.GRADIENT_ACCUMULATION, good=False, message=f"{text}; there are {there} {unit} only")
    if plan.steps < FEW_STEPS:
        return _judged(_N.GRADIENT_ACCUMULATION, good=False, message=f"{text}: fewer than {FEW_STEPS} teach little")
    return _judged(_N.GRADIENT_ACCUMULATION, good=True, message=text)


def _chat_template(plan: Planned) -> CheckStatus:
    tokens = plan.data.tokens
    if tokens is None or tokens.template == "none":
        return _skipped(_N.CHAT_TEMPLATE, "rows are taken as they are, without a template")
    if tokens.template == "chatml":
        text = "the tokenizer has none; ChatML is used, and published with the adapter"
        return _judged(_N.CHAT_TEMPLATE, good=False, message=text)
    if tokens.lost_reasoning:
        text = f"the tokenizer's own; it leaves the reasoning of {tokens.lost_reasoning} answers out"
        return _judged(_N.CHAT_TEMPLATE, good=False, message=text)
    return _judged(_N.CHAT_TEMPLATE, good=True, message="the tokenizer's own")


def _labels(plan: Planned) -> CheckStatus:
    tokens = plan.data.tokens
    if tokens is None or not tokens.tokens:
        return _skipped(_N.LABELS, "nothing was tokenised")
    share, rows = tokens.loss_tokens / tokens.tokens, max(1, plan.data.rows)
    text = f"{tokens.loss_tokens:,} of {tokens.tokens:,} tokens count in the loss, {share_text(share)}"
    problems = []
    if share < LOSS_TOKENS:
        problems.append("very few")
    if tokens.unlearnable_rows > UNLEARNABLE * rows:
        problems.append(f"{tokens.unlearnable_rows} rows are left out, as maxLength leaves nothing of their answers")
    if plan.settings.training.loss is Loss.COMPLETION and tokens.truncated_percent > 100 * CUT:
        cut = share_text(tokens.truncated_percent / 100)
        problems.append(f"{cut} of the rows are cut: a row with a cut answer does not teach the model to stop")
    return _judged(_N.LABELS, not problems, "; ".join([text, *problems]))


def _held_out(plan: Planned) -> CheckStatus:
    data, copies = plan.data, plan.data.evaluation_duplicates
    about = ""
    if plan.held_out is not None:
        rows = plan.held_out
    elif plan.fraction is not None:
        rows, about = max(1, round(data.rows * plan.fraction)), "about "
    else:
        rows = data.evaluation_rows
    text, problems = f"{about}{rows} rows", []
    if rows - copies < FEWEST_ROWS:
        which = "different rows" if copies else "rows"
        problems.append(f"fewer than {FEWEST_ROWS} {which} are too few to tell a gain from chance")
    if copies > DUPLICATES * data.evaluation_rows:
        problems.append(f"{copies} of them are copies of others")
    if data.overlap:
        problems.append(f"{data.overlap} of them are training rows, too")
    again = data.duplicates - copies
    if again > DUPLICATES * max(1, data.rows):
        side = "rows" if plan.fraction is not None else "training rows"
        problems.append(f"{again} of {data.rows} {side} appear more than once")
    return _judged(_N.HELD_OUT, not problems, "; ".join([text, *problems]))


_PLANNED: Final[tuple[Callable[[Planned], CheckStatus], ...]] = (
    _target_modules,
    _rank,
    _alpha,
    _dropout,
    _learning_rate,
    _accumulation,
    _chat_template,
    _labels,
    _held_out,
)


def _measured(found: Measured) -> Iterator[CheckStatus]:
    changed = ", ".join(found.base_changed)
    if not found.ended:
        yield _skipped(_N.BASE_FROZEN, "stopped before the end of training, where the base is compared")
    elif not found.base_compared:
        yield _skipped(_N.BASE_FROZEN, "the base has no matrix that could be compared")
    elif changed:
        yield _judged(_N.BASE_FROZEN, good=False, message=f"changed in training: {changed}")
    else:
        text = f"{found.base_compared} matrices of the base model (first, middle, last layer) have not changed"
        yield _judged(_N.BASE_FROZEN, good=True, message=text)
    strangers = ", ".join(found.strangers[:_SHOWN])
    text = f"trained beside the adapter: {strangers}" if strangers else "nothing else was trained"
    yield _judged(_N.ONLY_ADAPTER_TRAINS, not found.strangers, text)
    yield from (_padding(found), _batch_fits(found), _generation(found), _baseline(found))


def _padding(found: Measured) -> CheckStatus:
    if found.padding is None:
        return _skipped(_N.PADDING, _NOTHING_TRAINED)
    return _judged(_N.PADDING, found.padding <= PADDING, f"{share_text(found.padding)} of the tokens were padding")


def _batch_fits(found: Measured) -> CheckStatus:
    if found.memory is None:
        unknown = "how much memory is in use, or may be, is not known here"
        return _skipped(_N.BATCH_FITS, _NOTHING_TRAINED if found.padding is None else unknown)
    used, available = human_bytes(found.memory.used), human_bytes(found.memory.available)
    # The peak of the process counts mapped files, too.
    what = "by tensors" if found.on_gpu else "without page cache"
    text = f"training used {used} of {available} ({share_text(found.memory.share)}), {what}"
    return _judged(_N.BATCH_FITS, found.memory.share <= TIGHT, text)


def _generation(found: Measured) -> CheckStatus:
    ends = found.ends
    if ends is None:
        return _skipped(_N.GENERATION, "the rows have no answers that end")
    text = f"{share_text(ends.stopping)} of the answers end with a token that ends generation"
    if ends.stopping >= 0.5:
        return _judged(_N.GENERATION, good=True, message=text)
    stops = ", ".join(ends.stops) or "no token"
    more = f"most end with {ends.token!r}, and serving stops at {stops}: set it there"
    return _judged(_N.GENERATION, good=False, message=f"{text}; {more}")


def _baseline(found: Measured) -> CheckStatus:
    if not math.isfinite(found.before) or found.before <= 0:
        return _skipped(_N.BASELINE, "the held-out loss before training is not known")
    if not math.isfinite(found.after):
        text = f"{found.before:.4g} before training; stopped before the held-out loss was measured again"
        return _skipped(_N.BASELINE, text)
    error = found.change.share_error(found.before) if found.change else None
    text = f"{found.before:.4g} → {found.after:.4g}, {change_text(found.after / found.before - 1, error)}"
    if found.after > found.before:
        return _judged(
            _N.BASELINE, good=False, message=f"{text}: on the held-out rows it is worse than before training"
        )
    return _judged(_N.BASELINE, good=True, message=text)
