"""Conversations rendered each second by their turns: of a known shape, and taken apart turn by turn, in one run."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from transformers import AutoTokenizer

from tunery_api.training import Loss
from tunery_trainer.data.render import Renderer
from tunery_trainer.data.rows import Example, RowPlace

from tools.cluster.model import ensure as ensure_model

TURNS: Final = (1, 3, 10, 30)
SECONDS: Final = 2.0
_WORDS: Final = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "nobody",
    "looks",
    "at",
    "it",
    "for",
    "long",
]


def main() -> None:
    """Print one JSON line: for each number of turns the rows/s of both, medians of the repeats, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(ensure_model())
    print(json.dumps({turns: compare(tokenizer, turns, arguments.repeats) for turns in TURNS}))


def compare(tokenizer: Any, turns: int, repeats: int) -> dict[str, float]:
    """Both, one after the other, `repeats` times."""
    rows = [conversation(turns, number) for number in range(200)]
    known = Renderer(tokenizer, Loss.COMPLETION)
    rates: dict[str, list[float]] = {"known": [], "taken apart": []}
    for _ in range(repeats):
        rates["known"].append(rate(known.render, rows))
        rates["taken apart"].append(rate(lambda row: Renderer(tokenizer, Loss.COMPLETION).render(row), rows))
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    return {**medians, "ratio": round(medians["known"] / medians["taken apart"], 2)}


def conversation(turns: int, number: int) -> Example:
    """As many questions with answers, of five to forty words; another one for each number."""
    drawn = random.Random(1000 * turns + number)
    return Example(
        RowPlace("rows", number),
        messages=tuple(
            {"role": role, "content": " ".join(drawn.choices(_WORDS, k=drawn.randint(5, 40)))}
            for _ in range(turns)
            for role in ("user", "assistant")
        ),
    )


def rate(render: Callable[[Example], object], rows: Sequence[Example]) -> float:
    """Rows a second of this process's CPU, over some seconds."""
    start, done = time.process_time(), 0
    while (spent := time.process_time() - start) < SECONDS:
        render(rows[done % len(rows)])
        done += 1
    return done / spent


if __name__ == "__main__":
    main()
