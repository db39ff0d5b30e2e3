"""A failure without a cluster: its remedies name nothing that only a cluster has, whatever the reason."""

from __future__ import annotations

import re

import pytest

from tunery_api.failures import Subject
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_api.runspec import RunIdentity, RunSpec
from tunery_common.errors import TuneryError
from tunery_trainer.process.failures import LOCAL_REMEDIES, hint_of, localize, subject_of

from kit.projects import PROJECTS

CODE = [
    path.read_text()
    for project in PROJECTS
    if project.package in ("tunery_common", "tunery_trainer")
    for path in project.source.rglob("*.py")
]
RAISED = [reason for reason in FailureReason if any(f"FailureReason.{reason.name}" in code for code in CODE)]
"""What the trainer raises; the others are the operator's."""
OF_A_CLUSTER = re.compile(
    r"new LoRAJob|apply|to retry|Secret|namespace|\bnode|\bpod\b|container|kubectl|scheduling|resources\.(mem|eph)",
    re.IGNORECASE,
)
JOB = Subject("LoRAJob", "support", "team")
OWN = TuneryError(
    FailureReason.DATASET_INVALID, "too few", retry("Add rows"), recreate("Set dataset.uri", "dataset.uri")
)


def test_most_reasons_are_raised_by_the_trainer() -> None:
    assert len(RAISED) > 15
    assert set(LOCAL_REMEDIES) <= set(RAISED) | {FailureReason.PEER_LOST}


@pytest.mark.parametrize("reason", RAISED)
def test_the_usual_remedies_need_no_cluster(reason: FailureReason) -> None:
    hint = hint_of(TuneryError(reason, "it failed"), None)
    assert hint
    assert not OF_A_CLUSTER.search(hint), hint


def test_the_remedies_of_an_error_itself_stay() -> None:
    assert localize(OWN).remedies == OWN.remedies
    full = TuneryError(FailureReason.DISK_FULL, "no space left")
    assert localize(full).remedies == LOCAL_REMEDIES[FailureReason.DISK_FULL] != full.remedies
    full.facts["curve"] = "file:///curve.jsonl"
    assert localize(full).facts == full.facts


def test_a_hint_names_the_manifest_or_the_object() -> None:
    assert hint_of(OWN, None) == "Add rows, and run it again. Or, in the manifest: set dataset.uri."
    assert hint_of(OWN, JOB).startswith("Add rows. Or, in a new LoRAJob: set dataset.uri. To retry: kubectl annotate ")


def test_a_run_without_a_cluster_belongs_to_no_object() -> None:
    identity = RunIdentity(kind="LoRAJob", namespace="team", name="support", uid="u-1")
    run = RunSpec(identity=identity, output_uri="s3://b/out")
    assert subject_of(run) == JOB
    assert subject_of(run.model_copy(update={"local": True})) is None
