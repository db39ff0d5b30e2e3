"""That the search is worth its GPU time: better than chance, and fewer trials that cannot work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping

from tunery_api.lorasweep import SamplerType
from tunery_api.search.dimensions import Categorical, Dimension, Numeric
from tunery_api.search.protocol import Ask, ToldState, ToldTrial
from tunery_api.search.suggest import answer

GUIDE: tuple[Dimension, ...] = (
    Numeric("training.learningRate", 1e-5, 1e-2, log=True),
    Categorical("lora.rank", ("4", "8", "16", "32", "64")),
    Categorical("lora.alpha", ("8", "16", "32", "64")),
    Numeric("lora.dropout", 0.0, 0.2),
    Numeric("training.warmup", 0.0, 0.2),
    Numeric("training.weightDecay", 0.0, 0.1),
)
"""Shaped like the guide's space."""
TIGHT: tuple[Dimension, ...] = (
    Categorical("lora.alpha", ("8", "16", "32", "64")),
    Categorical("training.batchSize", ("1", "2", "4", "8", "16")),
    Numeric("lora.dropout", 0.0, 0.2),
    Numeric("training.learningRate", 1e-5, 1e-2, log=True),
    Categorical("lora.rank", ("4", "8", "16", "32", "64")),
)
Judge = Callable[[Mapping[str, str]], float | None]
"""From a trial's values to its loss; None: it cannot work."""


def loss(values: Mapping[str, str]) -> float:
    """Return what the best rate, at alpha over rank, is worth, and a little of all else; at best 1.5."""
    rank, alpha = int(values["lora.rank"]), int(values["lora.alpha"])
    rate = math.log10(float(values["training.learningRate"]) * math.sqrt(alpha / rank))
    return (
        1.5
        + 0.25 * (rate + 3.2) ** 2
        + 0.03 * abs(math.log2(rank) - 4)
        + 2 * (float(values["lora.dropout"]) - 0.05) ** 2
        + 0.2 * abs(float(values["training.warmup"]) - 0.1)
    )


def beside_an_edge(values: Mapping[str, str]) -> float | None:
    """Return a loss that is best where memory nearly runs out and training nearly diverges."""
    rank, batch = int(values["lora.rank"]), int(values["training.batchSize"])
    rate = float(values["training.learningRate"]) * math.sqrt(int(values["lora.alpha"]) / rank)
    if batch + rank / 16 > 10 or rate > 3e-3:
        return None
    near = 0.3 * (math.log10(rate) + 3.0) ** 2 + 0.2 * float(values["lora.dropout"])
    return near + 0.1 * abs(math.log2(batch) - 3) + 0.02 * abs(math.log2(rank) - 5)


def searched(
    judge: Judge, space: tuple[Dimension, ...], sampler: SamplerType, seed: int, *, trials: int, bad: ToldState
) -> list[float | None]:
    """Return what each of so many trials came to, one after the other; `bad` is what is told where it cannot work."""
    known: tuple[ToldTrial, ...] = ()
    for number in range(trials):
        asked = Ask(seed=seed, sampler=sampler, startup=8, space=space, trials=known, numbers=(number,))
        (made,) = answer(asked).suggestions
        value = judge(made.values)
        state = bad if value is None else ToldState.COMPLETE
        known += (ToldTrial(number=number, state=state, values=made.values, value=value),)
    return [judge(told.values) for told in known]


def lowest(sampler: SamplerType, seed: int) -> float:
    came = searched(loss, GUIDE, sampler, seed, trials=30, bad=ToldState.PRUNED)
    return min(value for value in came if value is not None)


def test_tpe_is_better_than_chance_at_thirty_trials_on_28_of_40_seeds() -> None:
    """Both begin with the same eight by chance. Of 120 seeds it was better on 79, and far nearer to the best."""
    chance = [lowest(SamplerType.RANDOM, seed) - 1.5 for seed in range(40)]
    tpe = [lowest(SamplerType.TPE, seed) - 1.5 for seed in range(40)]
    better = sum(ours < theirs for ours, theirs in zip(tpe, chance, strict=True))
    assert better >= 28, (better, statistics.median(tpe), statistics.median(chance))
    assert statistics.median(tpe) < 0.6 * statistics.median(chance)


def test_told_what_cannot_work_a_sampler_wastes_fewer_trials() -> None:
    """Of the last 30 of 40, over 12 sweeps: told as behind all others, and told as if nothing were known."""
    wasted = {
        bad: sum(
            value is None
            for seed in range(12)
            for value in searched(beside_an_edge, TIGHT, SamplerType.TPE, seed, trials=40, bad=bad)[10:]
        )
        for bad in (ToldState.PRUNED, ToldState.FAILED)
    }
    assert wasted[ToldState.PRUNED] < 0.75 * wasted[ToldState.FAILED], wasted
