"""Reports: what is posted when, what is taken from the answer, and that no failure of it is anybody's business."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from urllib3.exceptions import ConnectTimeoutError, SSLError

from tunery_api.serverstatus import AdapterState
from tunery_api.serving import Desired, ReplicaReport, ReplicaState, ReportedAdapter
from tunery_common.progress_client import Refused
from tunery_server.report import MAX_REPORT, Reporter, body_of, poster


class Replica:
    """As much of a loader as is reported of."""

    def __init__(self) -> None:
        self.says = ReplicaState(revision=1)
        self.up = False
        self.offered: list[Desired] = []

    def state(self) -> ReplicaState:
        return self.says

    def ready(self) -> bool:
        return self.up

    def offer(self, desired: Desired) -> None:
        self.offered.append(desired)


class Operator:
    """Answers as it is told, and notes when it was asked."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.posts: list[tuple[float, ReplicaState]] = []
        self.now = 0.0
        self.end = 30.0
        self.events: dict[float, ReplicaState] = {}
        self.up: set[float] = set()
        """Seconds in which requests may come."""
        self.told: dict[float, bool] = {}
        self.replica = Replica()

    def post(self, body: bytes) -> bytes:
        self.posts.append((self.now, ReplicaReport.model_validate_json(body).replica_status))
        answer = self.answers.pop(0) if self.answers else {}
        answer = answer() if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.replica.says = self.events.get(self.now, self.replica.says)
        self.told[self.now] = self.reporter.told()
        self.replica.up = self.now in self.up
        if self.now >= self.end:
            raise asyncio.CancelledError

    async def run(self) -> list[float]:
        self.reporter = Reporter(self.post, self.replica, self.sleep, lambda: self.now)
        with pytest.raises(asyncio.CancelledError):
            await self.reporter.run()
        return [second for second, _ in self.posts]


@pytest.fixture
def operator() -> Operator:
    return Operator()


async def test_a_replica_reports_every_five_seconds_or_as_often_as_it_is_asked_to(operator: Operator) -> None:
    operator.answers = [{}, {}, {"intervalSeconds": 10}, {"intervalSeconds": 0.001}]
    assert await operator.run() == [0, 5, 10, 20]


async def test_a_change_is_told_a_second_later(operator: Operator) -> None:
    operator.end = 8
    operator.events = {2.0: ReplicaState(revision=2), 3.0: ReplicaState(revision=3)}
    assert await operator.run() == [0, 2, 3]
    assert [state.revision for _, state in operator.posts] == [1, 2, 3]


async def test_that_requests_may_come_is_known_once_it_was_told_and_anew_after_each_time_that_they_might_not(
    operator: Operator,
) -> None:
    operator.end = 9
    operator.up = {2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0}
    assert await operator.run() == [0, 2, 5, 6], "it is told at once, though nothing else has changed"
    assert [second for second, told in operator.told.items() if told] == [3.0, 4.0, 5.0, 7.0, 8.0, 9.0]


async def test_an_operator_that_takes_no_report_is_not_waited_for(operator: Operator) -> None:
    operator.answers = [ConnectTimeoutError("away"), Refused(503, None)]
    operator.end, operator.up = 4, {1.0, 2.0, 3.0, 4.0}
    await operator.run()
    assert operator.told == {1.0: False, 2.0: True, 3.0: True, 4.0: True}


async def test_each_cause_of_an_outage_is_in_the_log_once(operator: Operator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tunery_server.report")
    untrusted = SSLError("certificate verify failed")
    operator.answers = [ConnectTimeoutError("away"), ConnectTimeoutError("away"), untrusted, untrusted, {}, untrusted]
    operator.end = 100
    await operator.run()
    said = [message.removeprefix("the operator ") for message in caplog.messages]
    assert said == [
        "did not take the report: ConnectTimeoutError: away",
        "did not take the report: SSLError: certificate verify failed",
        "takes reports again",
        "did not take the report: SSLError: certificate verify failed",
        "takes reports again",
    ]


async def test_a_standby_that_asks_to_try_again_says_nothing_of_the_operator_that_acts(operator: Operator) -> None:
    operator.answers = [Refused(503, 1.0), Refused(503, 1.0), Refused(503, 1.0)]
    operator.end, operator.up = 5, {1.0, 2.0, 3.0, 4.0, 5.0}
    assert await operator.run() == [0, 1, 2, 3]
    assert [second for second, told in operator.told.items() if told] == [4.0, 5.0]


@pytest.mark.parametrize("refusals", [0, 30], ids=["hangs", "refuses"])
async def test_an_operator_that_neither_takes_a_report_nor_fails_is_waited_for_five_seconds(
    operator: Operator, refusals: int
) -> None:
    def drip() -> object:
        operator.replica.up = True
        for _ in range(20):
            operator.told[operator.now] = operator.reporter.told()
            operator.now += 1
        return {}

    operator.answers = [Refused(503, 1.0)] * refusals or [drip]
    operator.up = {float(second) for second in range(40)}
    await operator.run()
    begun = 1.0 if refusals else 0.0
    assert min(second for second, told in operator.told.items() if told) == begun + 5


async def test_a_replica_that_was_ready_without_an_operator_stays_so_when_that_comes_back(operator: Operator) -> None:
    """It takes a report first that was made before requests might come."""
    operator.end, operator.up = 13, {11.0, 12.0, 13.0}

    def late() -> object:
        operator.replica.up = True
        operator.told[operator.now] = operator.reporter.told()
        return {}

    operator.answers = [ConnectTimeoutError("away"), late]
    assert await operator.run() == [0, 10, 11]
    assert [second for second, told in operator.told.items() if told] == [10, 11, 12, 13]


async def test_what_is_to_be_served_is_taken_from_the_answer(operator: Operator) -> None:
    desired = {"revision": 4, "adapters": [{"name": "bot", "uri": "s3://adapters/bot"}]}
    operator.answers = [{"desired": desired, "intervalSeconds": 5}, {"desired": None}]
    operator.end = 6
    await operator.run()
    assert [each.revision for each in operator.replica.offered] == [4]


async def test_failures_are_tried_again_within_half_a_minute_and_raise_nothing(operator: Operator) -> None:
    operator.answers = [
        Refused(403, None),
        ConnectTimeoutError("slow"),
        FileNotFoundError("token"),
        b"not json",
        {"desired": {"revision": 1, "adapters": [{"name": "half"}]}},
        RuntimeError("a defect"),
    ]
    operator.end = 100
    seconds = await operator.run()
    assert max(later - earlier for earlier, later in pairwise(seconds)) <= 15
    assert operator.replica.offered == [], "a list that is half read is none"
    assert seconds[-1] - seconds[-2] == 5


async def test_a_server_that_asks_for_patience_is_left_alone(operator: Operator) -> None:
    operator.answers = [Refused(429, 12.0)]
    operator.end = 20
    assert await operator.run() == [0, 12, 17]


def test_a_pod_that_was_told_of_no_operator_reports_to_none() -> None:
    assert poster({}) is None
    assert poster({"KUBEFLOW_TRAINER_SERVER_URL": "https://operator"}) is not None


@pytest.mark.slow
def test_a_report_of_thousands_of_failures_stays_within_its_limit_and_says_each_reason() -> None:
    failed = [
        ReportedAdapter(
            name=f"adapter-{number}",
            state=AdapterState.FAILED,
            wanted_sha256="0" * 64,
            reason="AdapterCorrupt",
            message="x" * 1024,
            hint="y" * 1024,
        )
        for number in range(4096)
    ]
    few = ReplicaReport.model_validate_json(body_of(ReplicaState(adapters=failed[:100]))).replica_status
    assert few.adapters[0].message == "x" * 1024
    body = body_of(ReplicaState(adapters=failed))
    assert len(body) <= MAX_REPORT
    told = ReplicaReport.model_validate_json(body).replica_status.adapters
    assert {each.reason for each in told} == {"AdapterCorrupt"}
    assert len(told) == 4096
    assert str(told[0].message).startswith("xxx")
