"""An adapter that is not good enough: kept beside the output, marked as rejected, and never taken for a result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tunery_api.manifest import Manifest
from tunery_api.reasons import ExitCode
from tunery_api.runspec import RunResult
from tunery_common.storage import open_store
from tunery_common.storage.published_folder import verify
from tunery_trainer.local import load_run_spec

from kit.peft_reader import held_out_rows, plain_peft, single_row_loss
from kit.story import Case, run_here

TOO_MUCH = {"minImprovement": 0.99}


def rejected(path: Path, **extra: str) -> str:
    """Run a job that ends NotImproved, and return what it says of that."""
    done = run_here("run", path, "--work-dir", path.parent / "work", **extra)
    assert done.returncode == ExitCode.USER_ERROR, done.stderr
    assert not (path.parent / "out" / "manifest.json").exists()
    said = "\n".join(done.stderr.splitlines()[-2:])
    assert said.startswith("NotImproved: the evaluation loss went from"), done.stderr
    return said


def manifest_of(folder: Path) -> Manifest:
    """Return the manifest of a place whose every digest matches."""
    return verify(open_store(folder.as_uri(), None, "")).manifest


@pytest.mark.slow
def test_a_rejected_adapter_is_published_beside_the_output(case: Case) -> None:
    path = case(evaluation=TOO_MUCH)
    place = path.parent / "out-rejected"
    assert f"published as rejected: {place.as_uri()}." in rejected(path)
    found = manifest_of(place)
    assert "minImprovement asks for −99.0 %" in (found.lineage.rejected or "")
    card = (place / "README.md").read_text().split("---\n\n", 1)[1]
    assert card.startswith(f"**Rejected, and not to be served:** {found.lineage.rejected}.\n")
    assert f"Copy `{place.as_uri()}` to `./out-rejected`" in card
    shutil.copytree(place, path.parent / "out")
    loss = single_row_loss(plain_peft(path.parent), held_out_rows(path.parent))
    assert loss == pytest.approx(found.lineage.metrics["evalLoss"], rel=0.01)


@pytest.mark.slow
def test_its_last_words_say_where_it_lies(case: Case, tmp_path: Path) -> None:
    """As the operator hears it: beside the failure, and not as the adapter."""
    path = case(evaluation=TOO_MUCH)
    run = tmp_path / "run.json"
    run.write_text(load_run_spec(path, path.parent / "work", None).model_dump_json(by_alias=True, exclude_unset=True))
    words = tmp_path / "words"
    assert run_here("train", run, TUNERY_TERMINATION_PATH=str(words)).returncode == ExitCode.USER_ERROR
    said = RunResult.model_validate_json(words.read_bytes())
    assert said.failure is not None
    assert said.failure.reason == "NotImproved"
    assert said.failure.facts["rejectedAdapter"] == (path.parent / "out-rejected").as_uri()
    assert said.adapter is None
    assert said.rejected_adapter is not None
    assert said.rejected_adapter.uri == (path.parent / "out-rejected").as_uri()
    assert said.metrics is not None
    assert said.metrics.eval_loss is not None
    assert said.resolved is not None
    assert said.checkpoint is not None
    assert said.checkpoint.step == 20


@pytest.mark.slow
def test_a_later_rejected_adapter_takes_the_place_of_an_earlier_one(case: Case) -> None:
    rejected(case(evaluation=TOO_MUCH))
    path = case(evaluation=TOO_MUCH, training={"seed": 1})
    first = manifest_of(path.parent / "out-rejected").run.uid
    assert "published as rejected" in rejected(path)
    assert manifest_of(path.parent / "out-rejected").run.uid != first
    assert "published as rejected" in rejected(path), "the same job says it again"


@pytest.mark.slow
def test_a_result_never_gives_way_to_a_rejected_adapter(case: Case) -> None:
    place = case().parent / "out-rejected"
    done = run_here("run", case(output={"uri": place.as_uri()}))
    assert done.returncode == ExitCode.OK, done.stderr
    result = manifest_of(place)
    said = rejected(case(evaluation=TOO_MUCH))
    assert f"could not be published at {place.as_uri()}: spec.output.uri: " in said
    assert manifest_of(place) == result


@pytest.mark.slow
def test_a_rejected_adapter_can_be_trained_on_and_stays(case: Case) -> None:
    path = case(evaluation=TOO_MUCH)
    rejected(path)
    before = manifest_of(path.parent / "out-rejected")
    later: dict[str, Any] = {"continueFrom": {"uri": "file://out-rejected"}, "lora": None, "evaluation": TOO_MUCH}
    assert "that is the adapter of spec.continueFrom, which stays" in rejected(case(**later))
    assert manifest_of(path.parent / "out-rejected") == before


@pytest.mark.slow
def test_a_place_that_may_not_be_written_is_told(case: Case) -> None:
    path = case(evaluation=TOO_MUCH)
    (path.parent / "out-rejected").write_text("a file where a folder would be")
    said = rejected(path)
    assert "what was trained could not be published at" in said


def test_an_adapter_that_changes_nothing_is_not_kept(case: Case) -> None:
    path = case(training={"learningRate": 1e-30, "weightDecay": 0.0})
    done = run_here("run", path)
    assert done.stderr.splitlines()[-2].startswith("NotImproved: the adapter changes nothing")
    assert not (path.parent / "out-rejected").exists()
