"""The pictures of a sweep: whatever the trials are, nothing is cut off, and no label lies on another."""

from __future__ import annotations

import itertools
import math
import random
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from tunery_api.runspec import LoRASweepRun
from tunery_trainer.reporting.sweep_pictures import IMPORTANCE_FROM, draw_sweep

Drawn = dict[Text, Bbox]
"""The texts of a picture, and where they lie, in pixels."""
RATE: Final = {"path": "training.learningRate", "words": "", "log": True}
MODULES: Final = ["query-value", "attention", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj"]
SPACE: Final[list[dict[str, Any]]] = [
    {"path": "method", "words": "", "choices": ["LoRA", "IA3"]},
    RATE,
    {"path": "lora.rank", "words": "", "choices": ["4", "8", "16", "32", "64"]},
    {"path": "lora.dropout", "words": ""},
    {"path": "lora.targetModules", "words": "", "choices": MODULES},
    {"path": "training.scaleLearningRateWithRank", "words": "", "choices": ["true", "false"]},
]
WIDE: Final = [*SPACE, *({"path": f"training.neftuneNoiseAlpha{at}", "words": ""} for at in range(10))]
CHOICES: Final = [{"path": "lora.rank", "words": "", "choices": [str(at) for at in range(1, 65)]}, RATE]


def trials(count: int, space: list[dict[str, Any]], **changes: Any) -> LoRASweepRun:
    """Draw trials of all kinds, the first of which is complete."""
    draw = random.Random(count)
    rows = [_row(number, draw, space) for number in range(count)]
    best = min((row for row in rows if row["state"] == "Complete"), key=lambda row: float(row["value"]))
    shares = [{"path": each["path"], "share": f"{1 / (at + 2):.3f}"} for at, each in enumerate(space)]
    facts = {"trials": rows, "best": best["number"], "trialsUri": "s3://b/out-trials/u", "seed": 1, "sampler": "TPE"}
    more = {"space": space, "rungs": [0.25, 0.5], "importance": shares, **changes}
    return LoRASweepRun.model_validate({**facts, **more})


def _row(number: int, draw: random.Random, space: list[dict[str, Any]]) -> dict[str, Any]:
    rate = 10 ** draw.uniform(-5, -1)
    end = 9.0 if rate > 0.05 else 0.3 + 0.4 * (math.log10(rate) + 2.5) ** 2
    kinds = ["Complete", "Pruned", "Infeasible", "Failed"]
    state = draw.choices(kinds, [6, 3, 1, 1])[0] if number else "Complete"
    losses = [end + (3.07 - end) * math.exp(-0.6 * at) for at in range(1, {"Complete": 9, "Pruned": 3}.get(state, 1))]
    values = {each["path"]: draw.choice(each.get("choices") or [f"{draw.uniform(0, 0.2):.4f}"]) for each in space}
    values |= {"training.learningRate": f"{rate:.8f}"} if RATE in space else {}
    if values.get("method") == "IA3":
        values = {path: value for path, value in values.items() if not path.startswith("lora.")}
    return {
        "number": number,
        "name": f"support-{number:03}",
        "state": state,
        "value": f"{end:.5g}" if state == "Complete" else None,
        "baseValue": "3.07",
        "parameters": values,
        "steps": 80,
        "evaluations": [{"step": 10 * at, "loss": f"{loss:.6g}"} for at, loss in enumerate(losses, 1)] or None,
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Drawn]]:
    """Collects what is written in each picture; a warning of matplotlib's, such as of no room, is an error."""
    pictures: list[Drawn] = []
    boxes: Drawn = {}
    save, draw = Figure.savefig, Text.draw

    def savefig(figure: Figure, *arguments: Any, **named: Any) -> None:
        boxes.clear()
        save(figure, *arguments, **named)
        pictures.append(dict(boxes))

    def draw_text(text: Text, renderer: Any) -> None:
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            boxes[text] = text.get_window_extent(renderer)

    monkeypatch.setattr(Figure, "savefig", savefig)
    monkeypatch.setattr(Text, "draw", draw_text)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # not a ResourceWarning of what another test has left
        yield pictures


def assert_readable(boxes: Drawn) -> None:
    """Assert that each text lies within the picture, and on no other."""
    assert len(boxes) > 5
    for text, box in boxes.items():
        whole = text.get_figure(root=True).bbox
        inside = min(box.x0, box.y0) >= -1 and box.x1 <= whole.width + 1 and box.y1 <= whole.height + 1
        assert inside, f"{text.get_text()!r} is cut off"
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        upright = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(across, upright) < 1, f"{one.get_text()!r} and {other.get_text()!r} lie on each other"


@pytest.mark.slow(fast=["one rate"])
@pytest.mark.parametrize(
    ("count", "space"),
    [(1, SPACE), (2, [RATE]), (12, SPACE), (40, SPACE), (60, CHOICES), (128, WIDE), (257, SPACE), (5, [])],
    ids=["one trial", "one rate", "few", "some", "64 choices", "16 parameters", "257 trials", "no parameter"],
)
def test_every_text_of_every_picture_can_be_read(
    tmp_path: Path, drawn: list[Drawn], count: int, space: list[dict[str, Any]]
) -> None:
    names = draw_sweep(trials(count, space), tmp_path)
    assert len(names) == len(drawn)
    for name, boxes in zip(names.values(), drawn, strict=True):
        width, height = struct.unpack(">II", (tmp_path / name).read_bytes()[16:24])
        assert 1000 <= width <= 4000
        assert 300 <= height <= 1200
        assert_readable(boxes)


@pytest.mark.slow
def test_what_matters_is_drawn_from_20_complete_trials_on(tmp_path: Path) -> None:
    complete = [row for row in trials(80, SPACE).trials if row.state == "Complete"]
    best = min(complete[: IMPORTANCE_FROM - 1], key=lambda row: float(row.value or "inf")).number
    known = trials(80, SPACE).importance
    for count, drawn in ((IMPORTANCE_FROM - 1, False), (IMPORTANCE_FROM, True)):
        run = trials(80, SPACE).model_copy(update={"trials": complete[:count], "best": best})
        assert ("sweep-importance.png" in draw_sweep(run, tmp_path).values()) is drawn
        nothing = draw_sweep(run.model_copy(update={"importance": []}), tmp_path)
        assert "sweep-importance.png" not in nothing.values()
    assert known


def labels(boxes: Drawn) -> set[str]:
    return {text.get_text() for text in boxes}


@pytest.mark.slow
def test_rates_stand_on_an_axis_of_factors(tmp_path: Path, drawn: list[Drawn]) -> None:
    draw_sweep(trials(40, [RATE]), tmp_path)
    assert {"0.0001", "0.001", "0.01"} <= labels(drawn[1])
    draw_sweep(trials(40, [RATE | {"log": False}]), tmp_path)
    assert "0.0001" not in labels(drawn[4])


@pytest.mark.slow
def test_odd_numbers_in_rows_are_no_obstacle(tmp_path: Path, drawn: list[Drawn]) -> None:
    run = trials(30, SPACE)
    odd = {"value": "inf", "base_value": "NaN", "parameters": {"training.learningRate": "much"}, "steps": None}
    rows = [row.model_copy(update=odd if row.number == run.best + 1 else {"base_value": None}) for row in run.trials]
    draw_sweep(run.model_copy(update={"trials": rows, "rungs": []}), tmp_path)
    for boxes in drawn:
        assert_readable(boxes)
    assert "before training" not in labels(drawn[0])
