"""Values to try, each from the resolved settings: 6e-4 where 2e-4 is now."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tunery_api.methods import LEARNING_RATE_FACTOR, METHOD_LEARNING_RATES, PREFERENCE_TASKS, usual_learning_rates
from tunery_trainer.settings.experts import EXPERTS, says_adapted
from tunery_trainer.settings.preference import PREFERENCE_RATE
from tunery_trainer.settings.types import RunSettings

LEAST_DROPOUT: Final = 0.1
FAR: Final = 3.0
"""Times the upper end of the usual span: of a rate above that a third lies outside, too, and is as likely to fail."""


_TURNED: Final = {
    "dataset.uri": "other data, or more of it (dataset.uri)",
    "dataset.evaluation": "more held-out rows (dataset.evaluation)",
    "lora.targetModules": "other lora.targetModules",
    "resources.cpu": "more resources.cpu",
    "resources.memory": "more resources.memory",
    "training.maxLength": "a lower training.maxLength",
}
"""Where no value is known to be better: which way the field is turned."""


@dataclass(frozen=True)
class Advice:
    """A field of the spec, and a value for it."""

    field: str
    suggest: str | None = None
    now: str | None = None
    beside: Advice | None = None
    """What has to be changed with it, where the one alone would be another training."""

    def __str__(self) -> str:
        """As a message tells it: training.learningRate: 6e-4 (now 2e-4)."""
        text = _TURNED.get(self.field, self.field) if self.suggest is None else f"{self.field}: {self.suggest}"
        text = text if self.now is None or self.now == self.suggest else f"{text} (now {self.now})"
        return text if self.beside is None else f"{text} with {self.beside}"


def decimal(value: float) -> str:
    """Return a value as people write it: 6e-4, 0.05, 3."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def learning_rate(settings: RunSettings, factor: float) -> Advice:
    """Return the learning rate times `factor`, as the manifest says it: before any scaling with the rank."""
    now = _said_rate(settings)
    return Advice("training.learningRate", decimal(now * factor), decimal(now))


def _said_rate(settings: RunSettings) -> float:
    said = {value.name: value.value for value in settings.values}.get("training.learningRate")
    return float(said) if said is not None else settings.training.learning_rate


def targets(settings: RunSettings, suggest: str | None = None) -> tuple[Advice, ...]:
    """Return the advice to adapt other modules; none for prompt and prefix tuning, which have no such field."""
    return () if settings.prompt else (Advice("lora.targetModules", suggest),)


def experts_adapted(settings: RunSettings) -> bool:
    """Tell whether the adapter is on a mixture's experts, too."""
    return any(value.name == EXPERTS and says_adapted(value.value) for value in settings.values)


def dropout(settings: RunSettings) -> tuple[Advice, ...]:
    """Return more dropout; none where there is enough, where the method has none, and where PEFT refuses it.

    That is where a mixture's experts are adapted: they are parameters, and no layers with an input of their own.
    """
    now = settings.adapter.dropout
    if not settings.adapter.rank or experts_adapted(settings) or now >= LEAST_DROPOUT:
        return ()
    return (Advice("lora.dropout", decimal(LEAST_DROPOUT), f"{now:g}"),)


def ranks(settings: RunSettings, factor: float) -> tuple[Advice, ...]:
    """Return the rank times `factor`, in the field that the method has; none where that is no other, or not allowed.

    AdaLoRA's targetRank stays below its initialRank, as the API asks for.
    """
    rank, budget = settings.adapter.rank, settings.adalora
    new = int(rank * factor)
    if budget is not None:
        new = min(new, budget.initial_rank - 1)
    if new in (0, rank):
        return ()
    return (Advice("lora.rank" if budget is None else "adalora.targetRank", str(new), str(rank)),)


def usual_rates(settings: RunSettings) -> tuple[float, float]:
    """Return the guide's span of learning rates for the LoRA family; for another method its own rate times 0.1 to 10.

    A quarter of that for DPO, ORPO and KTO, as of their default.
    """
    least, most = usual_learning_rates(METHOD_LEARNING_RATES.get(settings.method))
    share = PREFERENCE_RATE if settings.task in PREFERENCE_TASKS else 1.0
    return share * least, share * most


def is_far_above(settings: RunSettings) -> bool:
    """Tell whether the learning rate lies so far above the usual span that nothing else is worth a try first."""
    return settings.training.learning_rate > FAR * usual_rates(settings)[1]


def lower_rate(settings: RunSettings, factor: float) -> Advice:
    """Return the learning rate times `factor`, or of one far above the usual span what is known to work, if lower.

    That is the upper end of the guide's span; of another method, whose span is a guess, its own rate.
    """
    if not is_far_above(settings):
        return learning_rate(settings, factor)
    most = usual_rates(settings)[1]
    works = most / LEARNING_RATE_FACTOR if settings.method in METHOD_LEARNING_RATES else most
    now = _said_rate(settings)
    wanted = now * min(factor, works / settings.training.learning_rate)
    return Advice("training.learningRate", decimal(_rounded_down(wanted)), decimal(now))


def _rounded_down(value: float) -> float:
    """Return two digits of a rate, none of them above it: rounded up, the end of a span lies outside of it."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value / digit * (1 + 1e-9)) * digit


def length(settings: RunSettings, factor: float) -> Advice:
    """Return a run `factor` times as long, in the field that the run was measured in."""
    training = settings.training
    if training.max_steps is not None:
        return Advice("training.maxSteps", str(max(1, round(training.max_steps * factor))), str(training.max_steps))
    epochs = training.epochs or 1.0
    wanted = epochs * factor
    return Advice("training.epochs", str(round(wanted)) if wanted >= 1 else f"{wanted:.1g}", f"{epochs:g}")


def batch(settings: RunSettings, rows: int) -> Advice:
    """Return another number of rows of a pass, with as many passes as leave a step the rows that it has.

    They have to be shared by all devices that train together.
    """
    training = settings.training
    passes = max(1, training.batch_size * training.gradient_accumulation // rows)
    passes = -(-passes // training.devices) * training.devices
    beside = Advice("training.gradientAccumulation", str(passes), str(training.gradient_accumulation))
    return Advice("training.batchSize", str(rows), str(training.batch_size), beside)
