"""`tunery usage` against an API server."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from kit.operator.objects import Namespace, lorajob

Run = Callable[..., Any]


def test_usage_by_job_namespace_and_label(team: Namespace, tunery: Run, put_status: Run) -> None:
    assert tunery("usage", "--since", "2h").out.startswith("No GPU time since ")
    began = datetime.now(UTC) - timedelta(minutes=90)
    times = {"startTime": f"{began:%FT%TZ}", "endTime": f"{began + timedelta(hours=1):%FT%TZ}"}
    for name, seconds in (("small", 1800), ("large", 36_000), ("none", None)):
        body = lorajob(name)
        body["metadata"]["labels"] = {"team": "support" if name == "small" else "research"}
        team.apply(body)
        used = {} if seconds is None else {"gpuSeconds": seconds}
        put_status(name, attemptHistory=[{"uid": name, "pod": name, **times, **used}], **used)
    lines = tunery("usage").out.splitlines()
    assert lines[:3] == [
        "JOB             OBJECTS   GPU HOURS",
        "lorajob/large   1         10.00",
        "lorajob/small   1         0.50",
    ]
    assert lines[-1].startswith("10.50 GPU hours since ")
    assert "research   1         10.00" in tunery("usage", "--by", "team").out
    assert any(line.split() == [team.name, "2", "10.50"] for line in tunery("usage", "-A").out.splitlines())
    found = json.loads(tunery("-o", "json", "usage", "--since", "1h").out)
    assert [(each["name"], round(each["gpuHours"], 1)) for each in found["groups"]] == [
        ("lorajob/large", 5.0),
        ("lorajob/small", 0.2),
    ]


def test_a_time_that_is_none(tunery: Run) -> None:
    done = tunery("usage", "--since", "yesterday")
    assert (done.code, done.out) == (2, "")
    assert "yesterday is not a time" in done.err
