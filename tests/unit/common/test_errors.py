"""An error becomes a failure as data, whatever is in its texts; a disk that is too small names what limits it."""

from __future__ import annotations

import pytest

from tunery_api.reasons import FailureReason
from tunery_api.redact import REDACTED, register_secret
from tunery_api.remedies import MAX_REMEDY, Action, retry
from tunery_api.runspec import DiskLimit
from tunery_common.errors import TuneryError, raise_disk


def test_the_longest_name_in_a_remedy_leaves_a_failure_with_its_reason() -> None:
    """A key in a bucket may have 1,024 bytes."""
    error = TuneryError(FailureReason.MODEL_UNSUPPORTED, "m", retry(f"Fetch {'ü' * 1024} again"))
    assert error.failure.reason is FailureReason.MODEL_UNSUPPORTED
    assert len(error.failure.remedies[0].text.encode()) <= MAX_REMEDY


def test_a_failure_shows_no_credential_in_any_of_its_texts() -> None:
    error = TuneryError(FailureReason.INTERNAL_ERROR, "m hunter2-hunter2", retry("r hunter2-hunter2"))
    error.facts["dataReport"] = "f hunter2-hunter2"
    register_secret("hunter2-hunter2")
    failure = error.with_(remedies=error.remedies).failure
    assert (failure.message, failure.remedies[0].text) == (f"m {REDACTED}", f"r {REDACTED}")
    assert failure.facts == {"dataReport": f"f {REDACTED}"}


@pytest.mark.parametrize(
    ("field", "action", "fields"),
    [
        ("spec.resources.ephemeralStorage", Action.EDIT, ["resources.ephemeralStorage"]),
        ("spec.template.resources.ephemeralStorage", Action.RECREATE, ["template.resources.ephemeralStorage"]),
        ("the platform's preflight.resources.ephemeralStorage", Action.RETRY, []),
    ],
)
def test_a_disk_that_is_too_small_names_what_limits_it(field: str, action: Action, fields: list[str]) -> None:
    remedy = raise_disk(DiskLimit(bytes=1, field=field))
    assert (remedy.action, remedy.fields) == (action, fields)
    assert field.removeprefix("spec.") in remedy.text
