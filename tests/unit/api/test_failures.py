"""Hints are rendered from remedies: for an object, for a trial, for a sweep, and without a cluster."""

from __future__ import annotations

import pytest

from tunery_api.failures import Failure, Subject, render_hint
from tunery_api.reasons import FailureReason
from tunery_api.redact import MAX_MESSAGE_BYTES
from tunery_api.remedies import MAX_REMEDY, edit, recreate, retry

R = FailureReason
FIXES = [retry("Add rows"), edit("Raise retries", "retries"), recreate("Lower lora.rank", "lora.rank")]
JOB = Subject("LoRAJob", "bot", "team")
COMMAND = 'kubectl annotate {0} {1} -n team --overwrite tunery.dev/retry="$(date +%s)"'


def failed(**fields: object) -> Failure:
    """Return a failure with all three kinds of remedies."""
    return Failure.model_validate({"reason": R.DATASET_INVALID, "message": "x", "remedies": FIXES} | fields)


@pytest.mark.parametrize(
    ("subject", "hint"),
    [
        pytest.param(
            JOB,
            "Add rows; or raise retries. Or, in a new LoRAJob: lower lora.rank. "
            f"To retry: {COMMAND.format('lorajob', 'bot')}",
            id="failed",
        ),
        pytest.param(
            Subject("LoRAJob", "bot", "team", ended=False),
            "Add rows; or raise retries. The LoRAJob then continues without a retry. "
            "Or, in a new LoRAJob: lower lora.rank.",
            id="blocked",
        ),
        pytest.param(
            Subject("LoRAJob", "s-003", "team", sweep="s"),
            "Add rows. Or, in the template of a new LoRASweep: raise retries; or lower lora.rank. "
            "LoRASweep s continues without this trial. "
            f"If the sweep has failed, retry it: {COMMAND.format('lorasweep', 's')}",
            id="trial",
        ),
        pytest.param(
            Subject("AdapterServer", "chat", "team"),
            "Add rows; or raise retries. Or, in a new AdapterServer: lower lora.rank.",
            id="server",
        ),
        pytest.param(
            None,
            "Add rows, and run it again. Or, in the manifest: raise retries; or lower lora.rank.",
            id="without a cluster",
        ),
    ],
)
def test_a_hint_names_what_follows_the_fix(subject: Subject | None, hint: str) -> None:
    assert render_hint(failed(), subject) == hint


def test_fields_of_a_template_are_changed_there() -> None:
    remedy = recreate("Lower lora.rank", "template.lora.rank")
    hint = render_hint(failed(remedies=[remedy]), Subject("LoRASweep", "s", "team"))
    assert hint == "Lower lora.rank, in the template of a new LoRASweep."


def test_a_text_of_any_length_fits_and_has_no_credentials() -> None:
    remedy = retry(f"Check https://user:secretword@storage {'x' * 2000}")
    assert "secretword" not in remedy.text
    assert len(remedy.text.encode()) <= MAX_REMEDY


def test_what_only_another_spec_fixes_offers_no_retry() -> None:
    hint = render_hint(failed(remedies=FIXES[2:]), JOB)
    assert hint == "Lower lora.rank, in a new LoRAJob."


def test_facts_stand_before_the_command() -> None:
    hint = render_hint(failed(remedies=FIXES[:1], facts={"dataReport": "s3://b/r.md", "adapter": "a"}), JOB)
    assert hint == f"Add rows. Data report: s3://b/r.md. To retry: {COMMAND.format('lorajob', 'bot')}"


def test_a_command_is_whole_however_long_the_rest_is() -> None:
    long = failed(remedies=[retry("A" * MAX_REMEDY), recreate("B" * MAX_REMEDY)])
    hint = render_hint(long, JOB)
    assert len(hint.encode()) <= MAX_MESSAGE_BYTES
    assert hint.endswith(COMMAND.format("lorajob", "bot"))


def test_a_failure_without_remedies_has_those_of_its_reason() -> None:
    hint = render_hint(Failure(reason=R.OUT_OF_MEMORY, message="x"), JOB)
    assert hint.startswith("Raise resources.memory. To retry: ")


def test_a_reason_and_an_action_of_a_later_version_are_read() -> None:
    later = Failure.model_validate_json(
        '{"reason": "Later", "message": "x", "remedies": [{"action": "Wait", "text": "Wait an hour"}]}'
    )
    assert render_hint(later, JOB).startswith("Wait an hour. To retry: ")
    assert render_hint(Failure(reason="Later", message="x"), JOB).startswith("Look up this reason")
