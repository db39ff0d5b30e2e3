"""What a job goes on from, for a look at it: read where it lies on this machine, else said to be left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunery_common.errors import TuneryError
from tunery_trainer.resuming.here import start_here
from tunery_trainer.resuming.taken_settings import NOTHING

from kit.training import spec_of


def test_a_job_of_its_own_has_nothing() -> None:
    spec = spec_of({})
    start = start_here(spec, None)
    assert (start.spec, start.taken, start.adapter, start.left_out) == (spec, NOTHING, None, None)


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ({"continueFrom": {"uri": "s3://adapters/first"}}, "continueFrom: s3://adapters/first is not read here. What"),
        ({"continueFrom": {"loraJobRef": {"name": "first"}}}, "continueFrom: LoRAJob first is not read here."),
        ({"resumeFrom": {"uri": "s3://adapters/x/step-000040"}}, "resumeFrom: s3://adapters/x/step-000040 is not read"),
        ({"resumeFrom": {"loraJobRef": {"name": "first"}}}, "resumeFrom: LoRAJob first is not read here."),
    ],
)
def test_what_is_not_here_is_said_to_be_left_out(block: dict[str, Any], named: str) -> None:
    start = start_here(spec_of(block), None)
    assert start.left_out is not None
    assert start.left_out.startswith(named)
    assert "--from FOLDER" in start.left_out
    assert (start.adapter, start.taken) == (None, NOTHING)


def test_a_copy_may_be_named_and_its_configuration_is_enough(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    start = start_here(spec_of({"continueFrom": {"loraJobRef": {"name": "first"}}}), tmp_path)
    assert start.adapter is not None
    assert (start.adapter.folder, start.left_out) == (tmp_path, None)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({}, "--from {folder}: the manifest has neither continueFrom nor resumeFrom"),
        ({"continueFrom": {"uri": "s3://a/b"}}, "spec.continueFrom: {folder} has no adapter_config.json"),
        ({"resumeFrom": {"uri": "s3://a/b"}}, "spec.resumeFrom: {folder_uri} holds no complete checkpoint"),
    ],
)
def test_a_folder_that_holds_nothing_such_is_refused(tmp_path: Path, block: dict[str, Any], said: str) -> None:
    with pytest.raises(TuneryError) as caught:
        start_here(spec_of(block), tmp_path)
    assert caught.value.message.startswith(said.format(folder=tmp_path, folder_uri=tmp_path.as_uri()))
