"""What `check` says of the space of a sweep."""

from __future__ import annotations

from typing import Any

import pytest

from tunery_trainer.reporting.space_text import space_text

from kit.sweeps import sweep

RANKS = {"path": "lora.rank", "choices": ["4", "8", "16"]}
ALPHAS = {"path": "lora.alpha", "choices": ["8", "16"]}
WIDE = [
    {"path": path, "range": {"min": 0, "max": 0.5, "step": 0.01}} for path in ("lora.dropout", "training.weightDecay")
]
GRID = {"type": "Grid"}


def said(word: str, **fields: Any) -> list[str]:
    """Return what stands behind a word."""
    lines = space_text(sweep(**fields), []).splitlines()
    return [line.removeprefix(word).strip() for line in lines if line.startswith(word)]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sampler": GRID, "parameters": [RANKS, ALPHAS], "maxTrials": 4}, "; tries 4 of 6 points of the grid"),
        ({"sampler": GRID, "parameters": [RANKS, ALPHAS], "maxTrials": 6}, "; tries all 6 points of the grid"),
        ({"sampler": GRID, "parameters": [RANKS, ALPHAS]}, "; tries all 6 points of the grid"),
        ({"sampler": GRID, "parameters": WIDE}, "; tries 20 of more than 1000 points of the grid"),
        ({"parameters": [RANKS, ALPHAS], "maxTrials": 4}, ""),
    ],
)
def test_how_much_of_a_grid_is_tried(fields: dict[str, Any], told: str) -> None:
    [line] = said("Sweep", **fields)
    assert line.partition(" at a time")[2] == told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"preset": "Guide"}, ["InstructionTuning, DomainAdaptation, StyleTransfer"]),
        (
            {"preset": "Guide", "parameters": [{"path": "lora.rank", "choices": ["128", "256"]}]},
            ["none of the guide's configurations: none is a point of this space"],
        ),
        (
            {
                "preset": "Guide",
                "parameters": [{"path": "lora.rank", "choices": ["128", "256"]}],
                "initial": [{"lora.rank": "128"}],
            },
            ["Initial", "none of the guide's configurations: none is a point of this space"],
        ),
        ({}, []),
    ],
)
def test_which_trials_come_first_and_that_the_guides_do_not(fields: dict[str, Any], told: list[str]) -> None:
    assert said("First", **{"parameters": [], **fields} if fields else fields) == told
