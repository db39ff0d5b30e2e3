"""What is said of a run, each sentence once: from the numbers of a detector to a finding with a field and a value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tunery_api.findings import FINDINGS, MAX_FINDINGS, FindingStatus, FindingType, Severity
from tunery_api.measured import change_text, share_text
from tunery_api.redact import shorten
from tunery_api.training import Precision
from tunery_trainer.diagnosis.advice import (
    Advice,
    batch,
    decimal,
    dropout,
    is_far_above,
    learning_rate,
    length,
    lower_rate,
    ranks,
    targets,
    usual_rates,
)
from tunery_trainer.diagnosis.history import Point
from tunery_trainer.diagnosis.learning import Overfit, Slow, Still, Worse
from tunery_trainer.diagnosis.paired import FEWEST_ROWS, Difference
from tunery_trainer.diagnosis.speed import FEW_STEPS, UNSURE, Memory
from tunery_trainer.diagnosis.stability import Level, Rise
from tunery_trainer.settings.types import RunSettings

_F = FindingType
_MAX_TEXT: Final = 500
"""Bytes."""
FAR_ABOVE: Final = 2.0
"""Times the base's loss: from there on that says more of a rise than what it was at its best."""
_LEAST_WARMUP: Final = 0.1
_NAMED_STEPS: Final = 5
_MOST_HELD_OUT: Final = 0.2
"""Share of the rows that may be asked for: what is held out is not trained on."""
_NOTHING: Final = 1e-9
"""In the place of a loss of zero, of which there are no shares."""
_ORDER: Final = {severity: index for index, severity in enumerate(reversed(Severity))}


@dataclass(frozen=True)
class Finding:
    """One thing that a run found out about itself."""

    type: FindingType
    message: str
    advice: tuple[Advice, ...] = ()
    """What to change; the first is the one that the status names."""
    severity_is: Severity | None = None
    """Where it is not the one of its type."""

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return self.severity_is or FINDINGS[self.type].severity

    def to_status(self, step: int) -> FindingStatus:
        """Return the entry of status.findings; `step` is the optimizer step at which it was found first."""
        first = self.advice[0] if self.advice else None
        todo = f" Try {', or '.join(map(str, self.advice))}." if self.advice else ""
        return FindingStatus(
            type=self.type.value,
            severity=self.severity.value,
            step=step,
            field=first.field if first else None,
            suggest=first.suggest if first else None,
            message=shorten(self.message + todo, _MAX_TEXT),
        )


def ordered(found: Iterable[FindingStatus]) -> list[FindingStatus]:
    """Return them as a status shows them: the gravest first, then the oldest; no more than it holds."""
    ranks = {severity.value: rank for severity, rank in _ORDER.items()}
    return sorted(found, key=lambda each: (ranks.get(each.severity, len(ranks)), each.step))[:MAX_FINDINGS]


def _rise(found: Difference, of: float) -> str:
    """Return a rise as a share, with one standard error."""
    whole = of or _NOTHING
    return change_text(found.value / whole, found.share_error(whole), signed=False)


def worse_than_base(settings: RunSettings, found: Worse, base: float) -> Finding:
    """The held-out loss is above the base's."""
    if found.rise is None or found.loss > FAR_ABOVE * base:
        times = decimal(found.loss / (base or _NOTHING))
        above = f"The held-out loss is {found.loss:.4g}, {times} times the base model's {base:.4g}"
    else:
        above = f"The held-out loss is {_rise(found.rise, base)} above the base model's {base:.4g}"
    rate = lower_rate(settings, 1 / 5)
    if found.learned:
        text = (
            f"{above}, while the training loss fell: the held-out rows may be of another kind than the training rows."
        )
        return Finding(_F.WORSE_THAN_BASE, text, (rate, Advice("dataset.uri")))
    return Finding(_F.WORSE_THAN_BASE, f"{above}.", (rate,))


def loss_rising(settings: RunSettings, found: Rise | None, level: Level | None = None) -> Finding:
    """The loss rises; without `found` by the training loss alone, whose `level` says where it is now."""
    text = "The training loss has risen for good: it lies more than 1.3 times above its best."
    if found is not None:
        text = (
            f"The held-out loss was {found.best:.4g} at step {found.since} and is "
            f"{_rise(found.since_then, found.best)} above that now, and the training loss rose, too."
        )
    elif level is not None and level.times > FAR_ABOVE:
        text = (
            f"The training loss has risen for good: it is {level.loss:.4g}, {decimal(level.times)} times the held-out "
            f"loss of the base model ({level.base:.4g})."
        )
    # At such a rate clipping or a longer warm-up alone would end the same.
    others = () if is_far_above(settings) else _calmer(settings)
    return Finding(_F.LOSS_RISING, text, (lower_rate(settings, 1 / 3), *others))


def _calmer(settings: RunSettings) -> tuple[Advice, ...]:
    training = settings.training
    clipped = () if training.max_grad_norm else (Advice("training.maxGradNorm", "0.3", "0"),)
    short = training.warmup < 1 and training.warmup < _LEAST_WARMUP
    return (*clipped, *((Advice("training.warmup", "0.1", f"{training.warmup:g}"),) if short else ()))


def loss_spikes(settings: RunSettings, episodes: Sequence[Point], *, many: bool) -> Finding:
    """Single steps have a loss far above those around them."""
    steps = ", ".join(str(point.step) for point in episodes[:_NAMED_STEPS])
    more = ", …" if len(episodes) > _NAMED_STEPS else ""
    where = f"step {steps}" if len(episodes) == 1 else f"the steps {steps}{more}"
    text = f"The training loss jumped at {where}: look at the rows around there."
    if not many:
        return Finding(_F.LOSS_SPIKES, text, (learning_rate(settings, 1 / 2),), Severity.INFO)
    warmup = settings.training.warmup
    twice = Advice("training.warmup", f"{2 * warmup or _LEAST_WARMUP:g}", f"{warmup:g}")
    return Finding(_F.LOSS_SPIKES, text, (learning_rate(settings, 1 / 2), twice))


def no_gradient(settings: RunSettings, before: Point | None = None) -> Finding:
    """Nothing is trained; `before` is the last point at which something was."""
    if before is not None:
        text = (
            f"The gradient was {before.gradient:.3g} at step {before.step}, and has been zero since: nothing is "
            "trained any more, as after steps that are too large. Checkpoints from then on are spoilt."
        )
        return Finding(_F.NO_GRADIENT, text, (lower_rate(settings, 1 / 5),))
    text = (
        "The gradient has been zero for three steps: nothing is trained. Either no token of the rows counts in the "
        "loss, or the adapter does not act on the output."
    )
    return Finding(_F.NO_GRADIENT, text, (*targets(settings), Advice("dataset.uri")))


def unchanged(settings: RunSettings) -> Finding:
    """Steps are taken, and change no digit of what is trained."""
    text = "The adapter is what it was before the last three steps, although it has a gradient: nothing is trained."
    least = usual_rates(settings)[0]
    if settings.training.learning_rate < least:
        usual = Advice("training.learningRate", decimal(10 * least), decimal(settings.training.learning_rate))
        return Finding(_F.NO_GRADIENT, f"{text} Steps of this learning rate are lost in rounding.", (usual,))
    return Finding(_F.NO_GRADIENT, f"{text} No setting explains that: please report it.")


def gradient_not_finite(settings: RunSettings, gradient: float | None) -> Finding:
    """The gradient is no number."""
    half = settings.training.precision is Precision.FLOAT16
    wider = (Advice("training.precision", "BFloat16", "Float16"),) if half else ()
    text = f"The norm of the gradient became {math.nan if gradient is None else gradient}."
    return Finding(_F.GRADIENT_NOT_FINITE, text, (*wider, lower_rate(settings, 1 / 3)))


def too_slow(settings: RunSettings, found: Slow) -> Finding:
    """It learns, hardly."""
    sure = f"surely (z = {min(found.z, 999):.0f})"
    text = f"The held-out loss fell by {share_text(found.gain)} only, {sure}, and now as slowly as at first."
    return Finding(_F.LEARNING_RATE_TOO_LOW, text, (learning_rate(settings, 10),))


def not_learning(settings: RunSettings, found: Slow) -> Finding:
    """Return the finding that the held-out loss does not fall."""
    moved = f"has changed by {share_text(-found.gain)}" if found.gain else "did not change"
    text = f"After half of the run the held-out loss {moved}: nothing of the data is learned."
    low = settings.training.learning_rate < usual_rates(settings)[0]
    rate = (learning_rate(settings, 10),) if low else ()
    return Finding(_F.NOT_LEARNING, text, (*rate, *targets(settings), Advice("dataset.uri")))


def still_learning(settings: RunSettings, found: Still) -> Finding:
    """It would have learned more."""
    gained = share_text(found.ratio)
    text = f"The last third of the run gained {gained} of what the first third gained: it ended too early."
    return Finding(_F.STILL_LEARNING, text, (learning_rate(settings, 3), length(settings, 2)))


def plateau(settings: RunSettings, gained: float, largest: bool) -> Finding:
    """It has levelled off; `largest` tells that all linear layers are adapted.

    A rate outside the usual span is the likelier cause, and mended first: a larger adapter would not learn at it, too.
    """
    changed = f"{change_text(-gained)} in the last quarter"
    text = f"The held-out loss has levelled off ({changed}), and nothing is memorised."
    rate, (least, most) = settings.training.learning_rate, usual_rates(settings)
    if not least <= rate <= most:
        return Finding(_F.PLATEAU, text, (learning_rate(settings, 3 if rate < least else 1 / 3),))
    wider = () if largest else targets(settings, "all-linear")
    return Finding(_F.PLATEAU, text, (*ranks(settings, 2), *wider))


def overfitting(settings: RunSettings, found: Overfit, steps: int) -> Finding:
    """It learns by heart."""
    if found.rise.value > 0:
        since = (
            f"was best at step {found.since} ({found.best:.4g}) and has risen by {_rise(found.rise, found.best)} since"
        )
    else:
        since = (
            f"has surely fallen until step {found.since} only ({found.best:.4g}): what it gained since "
            f"(now {found.now:.4g}) may be chance"
        )
    text = f"The held-out loss {since}, while the training loss fell by {share_text(found.fell)}."
    shorter = length(settings, found.since / max(1, steps))
    same = shorter.suggest == shorter.now
    stop = Advice("evaluation.earlyStoppingPatience", "2")
    return Finding(
        _F.OVERFITTING, text, (*(() if same else (shorter,)), stop, *dropout(settings), *ranks(settings, 1 / 2))
    )


def too_few_steps(settings: RunSettings, steps: int) -> Finding:
    """It is too short to learn anything."""
    text = f"The run has {steps} optimizer steps: below {FEW_STEPS} the rate has hardly risen before it falls again."
    training = settings.training
    if training.max_steps is not None:
        # So many steps are taken, whatever a step holds.
        longer = Advice("training.maxSteps", str(FEW_STEPS), str(training.max_steps))
        return Finding(_F.TOO_FEW_STEPS, text, (longer,))
    epochs, passes = training.epochs or 1.0, training.gradient_accumulation
    longer = Advice("training.epochs", str(math.ceil(FEW_STEPS * epochs / steps)), f"{epochs:g}")
    fewest = training.devices  # one of each
    fewer = (Advice("training.gradientAccumulation", str(fewest), str(passes)),) if passes > fewest else ()
    return Finding(_F.TOO_FEW_STEPS, text, (longer, *fewer))


def evaluation_too_small(
    rows: int, unsure: float | None, fraction: float | None, total: int | None = None, copies: int = 0
) -> Finding:
    """The held-out rows tell too little; `fraction` is what of `total` rows is held out, None for rows of their own.

    `rows` are those that differ; of them so many `copies` are held out, too.
    """
    held_out = f"{rows + copies} rows are held out" + (f", {rows} if copies count once" if copies else "")
    text = (
        f"{held_out}, too few to tell a small gain from chance. With {FEWEST_ROWS} rows or more, the run measures how "
        "many are enough."
    )
    if unsure is not None:
        # Of a change the error is smaller, as it is measured row by row.
        text = (
            f"{held_out}, too few to measure the loss precisely: two standard errors are {share_text(unsure)} of it. A "
            "change since the start is measured better."
        )
    # An error shrinks with the root of the rows.
    times = max(2.0, FEWEST_ROWS / max(1, rows), (unsure / UNSURE) ** 2 if unsure is not None else 0.0)
    wanted = math.ceil(round(times * max(1, rows), 6))
    # A fraction is of all rows, and `rows` is rounded.
    larger = None if fraction is None else wanted / total if total else times * fraction
    if larger is not None and larger <= _MOST_HELD_OUT:
        share = Advice("dataset.evaluation.fraction", decimal_share(larger), f"{fraction:g}")
        return Finding(_F.EVALUATION_TOO_SMALL, text, (share,))
    enough = _rounded_up(times * max(1, rows))
    text = f"{text} {'At least' if unsure is None else 'About'} {enough} held-out rows are needed"
    if fraction is None:
        return Finding(_F.EVALUATION_TOO_SMALL, f"{text}.", (Advice("dataset.evaluation"),))
    text = f"{text}; this data set is too small for that."
    return Finding(_F.EVALUATION_TOO_SMALL, text, (Advice("dataset.uri"),))


def _rounded_up(rows: float) -> int:
    """Return a number of rows by its first two digits: more of them say more than is known."""
    digit: int = 10 ** max(0, len(str(math.ceil(rows))) - 2)
    return math.ceil(rows / digit) * digit


def decimal_share(share: float) -> str:
    """Return a share as a fraction of the API, rounded up: of less it would be a row too few."""
    return f"{math.ceil(share * 1000 - 1e-6) / 1000:.3f}".rstrip("0").rstrip(".")


def micro_batch_halved(settings: RunSettings, rows: int, reason: str) -> Finding:
    """Memory ran out, and the run goes on."""
    return Finding(
        _F.MICRO_BATCH_HALVED, f"{_sentence(reason)}; the steps see the same rows.", (batch(settings, rows),)
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def memory_tight(settings: RunSettings, memory: Memory, *, on_gpu: bool) -> Finding:
    """Hardly any memory is left."""
    whose, kind = ("GPU's", "") if on_gpu else ("container's", ", without page cache")
    text = f"{share_text(memory.share)} of the {whose} memory was in use{kind}: a longer row may not fit."
    rows = settings.training.batch_size
    less = (batch(settings, rows // 2),) if rows > 1 else (Advice("training.maxLength"),)
    return Finding(_F.MEMORY_TIGHT, text, less if on_gpu else (Advice("resources.memory"), *less))


def room_for_larger_batch(settings: RunSettings, memory: Memory) -> Finding:
    """The GPU could take more rows at once."""
    training = settings.training
    passes = training.gradient_accumulation
    each = f", {passes // training.devices} on each device" if training.devices > 1 else ""
    text = f"{share_text(memory.share)} of the GPU's memory was in use at most, and a step took {passes} passes{each}."
    return Finding(_F.ROOM_FOR_LARGER_BATCH, text, (batch(settings, 2 * training.batch_size),))


def waiting_for_data(share: float, *, packable: bool) -> Finding:
    """The rows come too late."""
    text = f"{share_text(share)} of the time of the last 50 steps passed until their rows were there."
    packed = (Advice("training.packing", "true"),) if packable else ()
    return Finding(_F.WAITING_FOR_DATA, text, (Advice("resources.cpu"), *packed))


def much_padding(settings: RunSettings, share: float, *, packable: bool) -> Finding:
    """Much of what is computed is padding."""
    text = f"{share_text(share)} of the tokens of the last 50 steps were padding."
    grouped = Advice("training.groupByLength", "true")
    packed = Advice("training.packing", "true")
    return Finding(_F.MUCH_PADDING, text, (packed,) if packable else (grouped,))


def slowing_down(times: float) -> Finding:
    """Steps take longer."""
    text = (
        f"A step took up to {times:.2g} times as long as at first, with as many tokens: look at the node, and at its "
        "GPU if it has one."
    )
    return Finding(_F.SLOWING_DOWN, text)
