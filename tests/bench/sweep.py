"""Sweeps at equal budget, side by side in one run: the guide's configurations, chance, TPE, pruning, Katib's Optuna.

    python -m bench.sweep [--only trainings] [--matching "^TPE|Katib"] [--seeds 40]

Ours are the product's own question, sampler, decision and pruner; instead of a training there is a table of 468 real
trainings of a tiny model, or a function of six parameters. Katib's service is fetched at the first run: bench/katib.py.
Prints one JSON line for each search: the lowest loss that it came to, over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import optuna

from tunery_api.lorasweep import MAX_TRIALS
from tunery_search.dimensions import Values, point_key
from tunery_search.trials import Trial

from bench.katib import Experiment, Failed, Katib, NoKatib, started
from bench.simulated import SECONDS, ends, simulated, steps
from kit.landscapes import Landscape, failing, function, points, trainings

BUDGETS: Final = (12, 24)
"""Trials, or as many steps as they would take without a pruner."""
AT_ONCE: Final = 4
STARTUP: Final = 8
"""Trials by chance before TPE: the default of a sweep, and what Katib is told."""
EVALUATIONS: Final = 8
"""Of a training in the table."""
_NONE: Final = {"type": "None"}
_EQUAL_STEPS: Final = "guide + TPE + pruning, as many steps"
_ALGORITHMS: Final = ("tpe", "multivariate-tpe")
_LAST: Final = 16
"""Trials in which failures are counted: those behind what is made by chance."""
_ROUNDED: Final = 1e-5


class Outcome(NamedTuple):
    """A search that has ended."""

    ends: Sequence[float | None]
    """By number; None of a trial that did not come to its end."""
    values: Sequence[Values]
    steps: Sequence[int] | None = None
    """The evaluations that each came to; None where nobody ends any early."""


Search = Callable[[int], Outcome]
"""From a seed."""


def ours(landscape: Landscape, *, guide: bool = False, **fields: Any) -> Search:
    """Return a sweep without a pruner, unless `fields` have one."""

    def search(seed: int) -> Outcome:
        wanted = {"maxTrials": BUDGETS[-1], "pruner": _NONE, "seed": seed, **fields}
        return _outcome(simulated(landscape, guide=guide, **wanted))

    return search


def by_chance(landscape: Landscape, **fields: Any) -> Search:
    """Return the search that learns nothing."""
    return ours(landscape, sampler={"type": "Random"}, **fields)


def _outcome(trials: Iterable[Trial]) -> Outcome:
    known = tuple(trials)
    return Outcome(ends(known), [each.row.parameters for each in known], steps(known))


def theirs(katib: Katib, landscape: Landscape, algorithm: str, parallel: int = 1) -> Search:
    """Return a search by Katib's service."""

    def search(seed: int) -> Outcome:
        experiment = Experiment(landscape, algorithm, seed, STARTUP)
        came = experiment.play(katib, BUDGETS[-1], parallel)
        return Outcome(came, [each["values"] for each in experiment.trials])

    return search


def all_of_katib(katib: Katib | None, landscape: Landscape, *parallel: int) -> dict[str, Search]:
    """Return the searches by Katib, none where it is not to be had."""
    if katib is None:
        return {}
    return {
        f"Katib {algorithm}, {count} at a time": theirs(katib, landscape, algorithm, count)
        for count in parallel
        for algorithm in _ALGORITHMS
    }


def compare(on: str, landscape: Landscape, katib: Katib | None, options: argparse.Namespace) -> None:
    """Print what each search came to, beside chance."""
    searches: dict[str, Search] = {
        "random": by_chance(landscape),
        "guide alone": ours(landscape, guide=True, maxTrials=len(landscape.guide)),
        "TPE": ours(landscape),
        "guide + TPE": ours(landscape, guide=True),
        f"TPE, {AT_ONCE} at a time": ours(landscape, parallelTrials=AT_ONCE),
        f"guide + TPE, {AT_ONCE} at a time": ours(landscape, guide=True, parallelTrials=AT_ONCE),
        **all_of_katib(katib, landscape, 1, AT_ONCE),
    }
    if landscape.has_course:
        searches["guide + TPE + pruning"] = ours(landscape, guide=True, pruner={})
        searches |= {f"{_EQUAL_STEPS}, {budget}": _as_many_steps(landscape, budget) for budget in BUDGETS}
    found = outcomes(searches, options)
    for budget in BUDGETS:
        chance = [_lowest(outcome, budget) for outcome in found["random"]]
        for name, known in found.items():
            own_budget = name.removeprefix(_EQUAL_STEPS).removeprefix(", ") if name.startswith(_EQUAL_STEPS) else None
            if own_budget not in (None, str(budget)):
                continue
            first = [_first(each, MAX_TRIALS if own_budget else budget) for each in known]
            made = {"trials": budget, "made": statistics.median(len(each.ends) for each in first)}
            said = _beside(landscape, [_lowest(each, MAX_TRIALS) for each in first], chance)
            print(json.dumps({"on": on, "search": name} | made | said | _share_of_steps(first)), flush=True)


def outcomes(searches: Mapping[str, Search], options: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Return what the searches came to, seed by seed; of those that are asked for, and of the first."""
    first = next(iter(searches))
    wanted = {name: search for name, search in searches.items() if name == first or re.search(options.matching, name)}
    return {name: [search(seed) for seed in range(options.seeds)] for name, search in wanted.items()}


def _as_many_steps(landscape: Landscape, budget: int) -> Search:
    """Return a pruned sweep that may take as long as so many trials to their ends."""
    seconds = budget * EVALUATIONS * SECONDS
    return ours(landscape, guide=True, pruner={}, maxTrials=MAX_TRIALS, budget={"gpuSeconds": seconds})


def _first(outcome: Outcome, count: int) -> Outcome:
    return Outcome(outcome.ends[:count], outcome.values[:count], outcome.steps and outcome.steps[:count])


def _lowest(outcome: Outcome, budget: int) -> float:
    return min(loss for loss in outcome.ends[:budget] if loss is not None)


def _beside(landscape: Landscape, lowest: Sequence[float], chance: Sequence[float]) -> dict[str, Any]:
    """Return the middle and the spread of what a search came to, and how it stands beside chance, seed by seed."""
    quarter, middle, most = statistics.quantiles(lowest, n=4, method="inclusive")
    usual = statistics.median(chance)
    return {
        "median": round(middle, 4),
        "quartiles": [round(quarter, 4), round(most, 4)],
        "worst": round(max(lowest), 4),
        "loss_of_random": round(middle / usual, 3),
        "regret_of_random": round((middle - landscape.lowest) / (usual - landscape.lowest), 3),
        "better": sum(ours < theirs for ours, theirs in zip(lowest, chance, strict=True)),
        "worse": sum(ours > theirs for ours, theirs in zip(lowest, chance, strict=True)),
    }


def _share_of_steps(known: Sequence[Outcome]) -> dict[str, Any]:
    """Return the share of the steps that the trials took, of those to their ends, where it is less."""
    shares = [sum(each.steps) / (EVALUATIONS * len(each.steps)) for each in known if each.steps]
    ended = any(loss is None for each in known for loss in each.ends)
    return {"share_of_steps": round(statistics.mean(shares), 3)} if shares and ended else {}


def count_duplicates(katib: Katib | None, options: argparse.Namespace) -> None:
    """Print how many proposals had been made before, where the rate is one of thirteen: 468 points."""
    landscape = points()
    searches = {
        "random": by_chance(landscape),
        "TPE": ours(landscape),
        f"TPE, {AT_ONCE} at a time": ours(landscape, parallelTrials=AT_ONCE),
        **all_of_katib(katib, landscape, 1, AT_ONCE),
    }

    def told(known: Sequence[Outcome]) -> dict[str, Any]:
        again = [len(each.values) - len({point_key(values) for values in each.values}) for each in known]
        return {"duplicates": sum(again), "of": sum(len(each.values) for each in known), "most_in_one": max(again)}

    _print_all("points", landscape, outcomes(searches, options), told)


def count_failures(katib: Katib | None, options: argparse.Namespace) -> None:
    """Print how many of the last trials failed, where some points cannot work, and what was found all the same."""
    landscape = failing()
    searches = {
        "random": by_chance(landscape),
        "TPE": ours(landscape),
        **all_of_katib(katib, landscape, 1),
    }

    def told(known: Sequence[Outcome]) -> dict[str, Any]:
        failed = [sum(loss is None for loss in each.ends[-_LAST:]) for each in known]
        return {"failed": round(statistics.mean(failed), 2), "of": _LAST, "most": max(failed)}

    _print_all("failing", landscape, outcomes(searches, options), told)


def _print_all(
    on: str,
    landscape: Landscape,
    found: Mapping[str, Sequence[Outcome]],
    told: Callable[[Sequence[Outcome]], dict[str, Any]],
) -> None:
    chance = [_lowest(each, MAX_TRIALS) for each in found["random"]]
    for name, known in found.items():
        lowest = [_lowest(each, MAX_TRIALS) for each in known]
        print(json.dumps({"on": on, "search": name} | told(known) | _beside(landscape, lowest, chance)), flush=True)


def restart(katib: Katib | None) -> None:
    """Print what either does whose process ends after half of its trials: ours begins each proposal anew."""
    if katib is None:
        return
    experiment, half = Experiment(trainings(), _ALGORITHMS[0], 0, STARTUP), BUDGETS[0]
    experiment.play(katib, half, 1)
    try:
        experiment.try_(katib.ask(experiment, 1, new=True))
        said = "it goes on"
    except Failed as error:
        said = str(error)
    print(json.dumps({"on": "restart", "search": "Katib", "after": half, "said": said}), flush=True)


def pruning(seeds: int) -> None:
    """Print what halving spares and loses in sweeps by chance: how often the best trial, and what that cost."""
    landscape = points()
    for count in (20, 40):
        search = by_chance(landscape, pruner={}, maxTrials=count)
        found = [search(seed) for seed in range(seeds)]
        best = [min(landscape.run(values).losses[-1] for values in each.values) for each in found]
        times = [_lowest(each, count) / lowest for each, lowest in zip(found, best, strict=True)]
        lost = sorted(round(each, 3) for each in times if each > 1 + _ROUNDED)
        told = {"trials": count, "sweeps": seeds, "lost": len(lost), "then_times_the_best": lost}
        print(json.dumps({"on": "pruning", "search": "random + pruning"} | told | _share_of_steps(found)), flush=True)


def main() -> None:
    """Print all, or one part."""
    parts: Mapping[str, Callable[[Katib | None, argparse.Namespace], None]] = {
        "trainings": lambda katib, options: compare("trainings", trainings(), katib, options),
        "function": lambda katib, options: compare("function", function(), katib, options),
        "duplicates": count_duplicates,
        "failures": count_failures,
        "restart": lambda katib, _: restart(katib),
        "pruning": lambda _, options: pruning(options.pruned),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, nargs="*", default=list(parts))
    parser.add_argument("--matching", default="", help="beside random those alone whose names this expression fits")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--pruned", type=int, default=300, help="sweeps by chance of the part pruning")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    with ExitStack() as stack:
        katib = None
        try:
            katib = stack.enter_context(started())
        except NoKatib as error:
            print(json.dumps({"on": "all", "search": "Katib", "said": str(error)}))
        for part in options.only:
            parts[part](katib, options)
    print(json.dumps({"load": [round(load, 1) for load in os.getloadavg()]}))


if __name__ == "__main__":
    main()
