"""What is known of a sweep without a cluster, and what follows from it: nothing is trained here."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tunery_common.errors import TuneryError
from tunery_trainer.local import sweep_of
from tunery_trainer.sweeping.ledger import LEDGER_FILE
from tunery_trainer.sweeping.search import Search, as_here

Look = Callable[[], Search]
Begin = Callable[..., Look]
RATE = {"path": "training.learningRate", "range": {"min": 1e-5, "max": 1e-2, "log": True}}
DATA = '{"prompt": "a", "completion": "b"}\n'
COMPLETE = {
    "phase": "Succeeded",
    "runSeconds": 9,
    "metrics": {"evalLoss": "1.5"},
    "adapter": {"uri": "file:///there", "manifestSha256": "0" * 64},
}


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Gives a function back that looks at a sweep as every process of it does: from what is on the disk."""
    (tmp_path / "model").mkdir()
    (tmp_path / "data.jsonl").write_text(DATA)

    def write(template: dict[str, Any] | None = None, **changes: Any) -> Look:
        data = {"uri": "file://data.jsonl", "evaluation": {"fraction": 0.1}}
        trial = {"model": {"uri": "file://model"}, "dataset": data, "resources": {"gpus": 1}, **(template or {})}
        spec = {
            "template": trial,
            "parameters": [RATE],
            "sampler": {"type": "Random"},
            "maxTrials": 4,
            "output": {"uri": f"file://{tmp_path}/out"},
            **changes,
        }
        manifest = {
            "apiVersion": "tunery.dev/v1alpha1",
            "kind": "LoRASweep",
            "metadata": {"name": "support"},
            "spec": spec,
        }
        folder = tmp_path / "known"
        folder.mkdir()
        return lambda: Search.of(*_as_here(*sweep_of(manifest, tmp_path, tmp_path / "work")), folder)

    return write


def _as_here(spec: Any, run: Any) -> tuple[Any, Any]:
    return as_here(spec), run


def test_the_budget_knows_what_a_trial_took_before_it_was_interrupted(begin: Begin) -> None:
    look = begin(budget={"gpuSeconds": 6})
    search = look()
    search.make(search.next())
    search.note(under_way_seconds=4.0)
    search.save()
    again = look()
    assert again.next().stop == {}
    again.trains(datetime.now(UTC))
    # Of the process that runs there is a note every few seconds, and none is counted twice.
    again.note(under_way_seconds=5.0)
    assert again.next().stop == {}
    again.trains(datetime.now(UTC) - timedelta(seconds=3))
    assert again.next().stop == {0: "sweep: the budget is spent"}
    again.note(under_way_seconds=7.0)
    again.save()
    assert look().next().stop == {0: "sweep: the budget is spent"}


def test_what_a_trial_took_is_in_its_row_once(begin: Begin) -> None:
    search = begin()()
    search.make(search.next())
    search.note(under_way_seconds=4.0)
    assert search.end({"phase": "Stopped", "gpuSeconds": 7}).gpu_seconds == 7
    search.make(search.next())
    assert search.trials[1].row.gpu_seconds is None


def test_the_best_settings_trained_once_more_are_checked_first(begin: Begin) -> None:
    search = begin(final={"training": {"batchSize": 8}}, maxTrials=2)()
    for number in range(2):
        search.make(search.next())
        assert search.under_way["spec"]["preflight"] == ("Skip" if number else "Required")
        search.end(COMPLETE)
    search.make(search.next())
    assert search.under_way["metadata"]["name"] == "support-final"
    assert search.under_way["spec"]["preflight"] == "Required"


def test_every_trial_reads_what_the_first_one_has_read(begin: Begin) -> None:
    look = begin(maxTrials=3)
    search = look()
    read = {
        "dataset": {"sha256": "1" * 64, "evaluationSha256": "2" * 64},
        "conditions": [{"type": "Preflight", "status": "True"}],
    }
    search.make(search.next())
    assert "sha256" not in search.under_way["spec"]["dataset"]
    search.end({**COMPLETE, **read})
    again = look()
    again.make(again.next())
    data = again.under_way["spec"]["dataset"]
    assert data["sha256"] == "1" * 64
    assert data["evaluation"] == {"fraction": 0.1}, "its rows are those of the data"


RANKS = [
    {"path": "adalora.targetRank", "choices": ["4", "12"]},
    {"path": "adalora.initialRank", "choices": ["64", "12"]},
]
"""A rank of 12 is invalid as both only."""


def test_values_that_do_not_go_together_are_a_row_and_another_trial_is_made(begin: Begin) -> None:
    values = [{"adalora.targetRank": "12", "adalora.initialRank": "12"}]
    look = begin({"method": "AdaLoRA"}, parameters=RANKS, initial=values, maxTrials=2)
    search = look()
    row = search.make(search.next())
    assert row is not None
    assert (row.number, row.state, row.reason, row.parameters) == (0, "Infeasible", "InvalidSpec", values[0])
    assert str(row.why).startswith("these values together: adalora.initialRank: is not above targetRank")
    again = look()
    assert again.ledger.trials == [row]
    assert again.make(again.next()) is None
    assert again.number == 1
    assert again.under_way["spec"]["adalora"] != {"targetRank": 12, "initialRank": 12}


def test_a_final_training_that_cannot_be_is_left_out_and_the_best_is_published(begin: Begin) -> None:
    search = begin({"training": {"packing": True}}, maxTrials=1)()
    search.make(search.next())
    search.end(COMPLETE)
    refused = search.spec.model_validate({**search.spec.to_json_dict(), "final": {"training": {"groupByLength": True}}})
    search.spec = refused
    row = search.make(search.next())
    assert row is not None
    assert (row.name, row.state, row.origin) == ("support-final", "Infeasible", "Final")
    assert str(row.why).startswith("spec.final with the best values: training.groupByLength: ")
    assert search.next().publish == 0


def _known(look: Look) -> tuple[Path, dict[str, Any]]:
    """Return the file of a sweep with a trial that has ended and one that has not, and what is in it."""
    search = look()
    search.make(search.next())
    search.end({"phase": "Failed", "failure": {"reason": "Killed", "message": "it was"}})
    search.make(search.next())
    path = search.folder / LEDGER_FILE
    known: dict[str, Any] = json.loads(path.read_text())
    return path, known


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda known: known | {"underWay": {}}, "underWay.metadata: "),
        (
            lambda known: known | {"underWay": known["underWay"] | {"metadata": {"name": "a"}}},
            "underWay.metadata.uid: ",
        ),
        (
            lambda known: known | {"underWay": known["underWay"] | {"status": {"phase": "Failed", "failure": 1}}},
            "it is",
        ),
        (lambda known: known | {"trials": [known["trials"][0] | {"reason": "Foo"}]}, "trials: "),
        (lambda known: known | {"trials": 7}, "trials: "),
        (lambda known: 7, ""),
    ],
)
def test_of_a_damaged_file_is_said_which_it_is_and_what_to_do(begin: Begin, damage: Any, says: str) -> None:
    look = begin()
    path, known = _known(look)
    assert look().number == 1
    path.write_text(json.dumps(damage(known)))
    with pytest.raises(TuneryError) as told:
        look()
    assert told.value.message.startswith(f"{path} holds no trials of this sweep: {says}")
    assert told.value.remedies[0].text.startswith(f"Move {path} away")
    path.rename(path.with_suffix(".old"))
    assert look().trials == ()


def test_a_folder_in_place_of_the_file_is_said(begin: Begin) -> None:
    look = begin()
    path, _ = _known(look)
    path.unlink()
    path.mkdir()
    with pytest.raises(
        TuneryError, match=r"sweep\.json holds no trials of this sweep: it cannot be read: Is a directory"
    ):
        look()
