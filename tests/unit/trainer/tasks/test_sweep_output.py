"""The first trial of a sweep finds out whether the sweep's own result may be published, before a GPU is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunery_api.reasons import ExitCode
from tunery_api.runspec import PreflightReport, RunIdentity
from tunery_common.storage import open_store
from tunery_common.storage.credentials import ambient
from tunery_common.storage.publisher import Target, publish
from tunery_trainer.local import load_run_spec

from kit.results import lineage
from kit.story import Case, manifest, run_here


def run_of_trial(path: Path, place: Path) -> Path:
    """Return the run.json of a trial whose sweep publishes at a place."""
    trial = manifest(path.parent, output={"uri": f"{place.as_uri()}-trials/uid-9/000"})
    path.write_text(json.dumps(trial))
    run = load_run_spec(path, path.parent / "work", None).model_copy(update={"also_free": place.as_uri()})
    written = path.parent / "run.json"
    written.write_text(run.model_dump_json(by_alias=True, exclude_unset=True))
    return written


def preflight(run: Path) -> tuple[int, PreflightReport]:
    """Return how the preflight of a run.json ends, and its last words."""
    message = run.with_name("termination")
    done = run_here("preflight", run, TUNERY_TERMINATION_PATH=str(message))
    return done.returncode, PreflightReport.model_validate_json(message.read_text())


@pytest.mark.parametrize("who", ["another", "the trial itself"])
def test_whoever_has_published_there_the_trial_is_refused(case: Case, who: str) -> None:
    path = case()
    place = path.parent / "swept"
    run = run_of_trial(path, place)
    uid = "u-1" if who == "another" else json.loads(run.read_text())["identity"]["uid"]
    folder = path.parent / "published"
    folder.mkdir()
    (folder / "README.md").write_text("an adapter")
    identity = RunIdentity(kind="LoRAJob", namespace="team", name="other", uid=uid)
    publish(folder, Target(open_store(place.as_uri(), ambient(), "test"), identity), lineage())
    there = {entry.name for entry in place.iterdir()}
    code, report = preflight(run)
    assert code == ExitCode.USER_ERROR
    assert report.failure is not None
    assert report.failure.reason == "OutputExists"
    assert report.failure.message.startswith(f"spec.output.uri of the LoRASweep: {place.as_uri()} already holds ")
    assert [(each.action, each.fields) for each in report.failure.remedies] == [("Retry", []), ("Recreate", [])]
    assert "output.overwrite: true" in report.failure.remedies[1].text
    assert {entry.name for entry in place.iterdir()} == there


@pytest.mark.slow
def test_a_free_place_is_left_as_it_is(case: Case) -> None:
    path = case()
    place = path.parent / "swept"
    code, report = preflight(run_of_trial(path, place))
    assert (code, report.failure) == (ExitCode.OK, None)
    assert not place.exists() or not any(place.iterdir())
