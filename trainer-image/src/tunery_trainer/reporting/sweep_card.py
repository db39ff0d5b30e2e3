"""How a sweep found its adapter: the section of the card, and sweep.json with every trial."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from tunery_api.measured import number_text
from tunery_api.runspec import LoRASweepRun, RunSpec
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_search.summary import without_removed_adapters
from tunery_trainer.reporting.markdown import literal, section, table
from tunery_trainer.reporting.sweep_rows import base_loss, of_state, ranked

SWEEP_FILE: Final = "sweep.json"
_BEST_SHOWN: Final = 10
_OTHERS_SHOWN: Final = 20
_VALUE: Final = 40
_WORDS: Final = 300
"""Characters of a value, and of many of them: a card that is too long would lose its end."""
_OTHERS: Final = (TrialState.PRUNED, TrialState.INFEASIBLE, TrialState.FAILED, TrialState.DELETED)
_ENDINGS: Final = {
    "MaxTrials": "it made as many trials as spec.maxTrials asks for",
    "Budget": "spec.budget was spent",
    "Deadline": "spec.activeDeadlineSeconds were over",
    "NoImprovement": "spec.stopAfterTrialsWithoutImprovement trials in a row were not better than the best",
    "SpaceExhausted": "there was no point of the space left that had not been tried",
    "MostWontFit": "as many trials as spec.maxTrials asks for would not have fitted into memory",
}


def sweep_json(run: RunSpec, sweep: LoRASweepRun) -> str:
    """Return all that is known of the search, for programs: every trial exactly as the sweep's status tells it.

    Of the adapters it names the places of those that are kept: the others are removed as soon as it is published.
    """
    told = without_removed_adapters(sweep.trials, sweep.best, sweep.keep_adapters)
    sweep = sweep.model_copy(update={"trials": told})
    facts = sweep.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"overwrite"})
    trials = facts.pop("trials")
    who = run.identity.model_dump(exclude_none=True)
    named: dict[str, Any] = {"sweep": who, "outputUri": run.output_uri, **facts, "trials": trials}
    return json.dumps(named, indent=1, ensure_ascii=False) + "\n"


def how_it_was_found(sweep: LoRASweepRun, pictures: dict[str, str]) -> str:
    """Return the section of the card, in Markdown; `pictures` are names of image files by title."""
    best = ranked(sweep)
    parts = [
        _summary(sweep, best[0]),
        *(f"![{title}]({name})" for title, name in pictures.items()),
        section(f"The {len(best[:_BEST_SHOWN])} best trials" if len(best) > 1 else "The trial", _best(sweep, best), 3),
        section("What was searched", _space(sweep), 3),
        section("Pruned, infeasible and failed", _others(sweep), 3),
    ]
    return "\n\n".join(part for part in parts if part)


def _summary(sweep: LoRASweepRun, best: TrialStatus) -> str:
    before = base_loss(sweep)
    compared = f", {number_text(before)} before training" if before is not None else ""
    counts = Counter(row.state for row in sweep.trials)
    states = ", ".join(f"{counts[state]} {state.value.lower()}" for state in TrialState if counts[state])
    lines = [
        f"This is trial {best.number} (`{best.name}`) of {len(sweep.trials)}: held-out loss {best.value}{compared}.",
        f"Trials: {states}.",
        f"Sampler {sweep.sampler} with seed {sweep.seed}"
        + (f"; compared at {', '.join(f'{rung:g}' for rung in sweep.rungs)} of the steps." if sweep.rungs else "."),
    ]
    if sweep.end_reason:
        lines.append(f"The search ended as {_ENDINGS.get(sweep.end_reason, sweep.end_reason)}.")
    spent = sum(row.gpu_seconds or 0 for row in sweep.trials)
    saved = f"; ending trials early saved some {sweep.gpu_seconds_saved:,}" if sweep.gpu_seconds_saved else ""
    lines.append(f"GPU seconds of all trials: {spent:,}{saved if spent else ', as none had a GPU'}.")
    lines.append(f"Every trial stands in `{SWEEP_FILE}`.")
    return " ".join(lines)


def _best(sweep: LoRASweepRun, best: list[TrialStatus]) -> str:
    paths = [each.path for each in sweep.space]
    head = ("Trial", "Held-out loss", *(f"`{path}`" for path in paths), "Trained parameters", "GPU seconds", "From")
    rows = [
        (
            str(row.number),
            row.value or "",
            *(_cut(row.parameters.get(path, ""), _VALUE) for path in paths),
            "" if row.trainable_parameters is None else f"{row.trainable_parameters:,}",
            f"{row.gpu_seconds or 0:,}",
            row.origin or "",
        )
        for row in best[:_BEST_SHOWN]
    ]
    return table(head, rows)


def _space(sweep: LoRASweepRun) -> str:
    shares = {each.path: each.share for each in sweep.importance}
    head = ("Parameter", "Values", *(("Share of what they change",) if shares else ()))
    rows = [
        (f"`{each.path}`", _cut(each.words, _WORDS), *((shares.get(each.path, ""),) if shares else ()))
        for each in sweep.space
    ]
    return table(head, rows)


def _others(sweep: LoRASweepRun) -> str:
    others = of_state(sweep, *_OTHERS)
    rows = [
        (
            str(row.number),
            row.state,
            row.at or "",
            literal(row.why or row.reason or ""),
            _cut(", ".join(f"{path} {value}" for path, value in row.parameters.items()), _WORDS),
        )
        for row in others[:_OTHERS_SHOWN]
    ]
    more = len(others) - _OTHERS_SHOWN
    return table(("Trial", "State", "At", "Why", "Parameters"), rows) + (
        f"\n\n{more} more stand in `{SWEEP_FILE}`." if more > 0 else ""
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
