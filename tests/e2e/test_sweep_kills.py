"""Sweeps on a real node whose operators are killed ten times: no trial twice, and what had ended stays as it was."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import ROWS, TINY, plain_peft_loss
from e2e.test_sweep import lorasweep

from kit.installation import NAMESPACE
from kit.jobs import FINAL, Job
from kit.kubectl import Kubectl, wait_for
from kit.operator.pods import OperatorRecord, operator_pods, wait_for_leader
from kit.processes import kill
from kit.published import download, split_uri
from tools.cluster import seed
from tools.demo.sweep import on_cpus

pytestmark = pytest.mark.slow

KILLS = 10
HELD = "s3://datasets/e2e/chatterbot-held.jsonl"
HELD_ROWS = 60
HANGING = {"Waiting", "Running"}


class Watched:
    """What a sweep and its trials were seen to be, all the while."""

    def __init__(self, sweep: Job) -> None:
        self._sweep = sweep
        self.final: dict[int, dict[str, Any]] = {}
        """Of each trial that has ended its row as it was first seen."""
        self.changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.uids: dict[str, set[str]] = defaultdict(set)
        """Of each number the LoRAJobs that had it."""
        self.over = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look on until the block ends."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join()

    def _watch(self) -> None:
        while not self.over.wait(0.5):
            self.look()

    def look(self) -> None:
        """Take note of how it is now."""
        for told in self._sweep.status.get("trials", []):
            if told["state"] in HANGING:
                continue
            # At the end the places of those go that are not kept.
            row = {name: value for name, value in told.items() if name != "adapter"}
            before = self.final.setdefault(row["number"], row)
            if before != row:
                self.changed.append((before, row))
        selector = f"tunery.dev/sweep={self._sweep.name}"
        for trial in self._sweep.kubectl.list("lorajobs", self._sweep.namespace, selector):
            self.uids[trial["metadata"]["labels"]["tunery.dev/trial"]].add(trial["metadata"]["uid"])


def kill_operators(sweep: Job, operator: OperatorRecord, often: int) -> int:
    """Kill the leader, or every operator with its pod, in turn, at random instants; return how often it was done."""
    kubectl, chance, done = sweep.kubectl, random.Random(14), 0
    for whole in itertools.islice(itertools.cycle([False, True]), often):
        wait_for("an operator that is ready", lambda: _ready(kubectl), 120)
        time.sleep(chance.uniform(0, 12))
        if sweep.status.get("phase") in FINAL:
            break
        if whole:
            for pod in operator_pods(kubectl):
                kubectl.run("delete", "pod", pod["metadata"]["name"], "-n", NAMESPACE, "--grace-period=0", "--force")
        else:
            name = wait_for_leader(kubectl, timeout=120)
            (leader,) = [pod for pod in operator_pods(kubectl) if pod["metadata"]["name"] == name]
            operator.killed(name)
            kill(leader, "tunery_operator")
        done += 1
    return done


def _ready(kubectl: Kubectl) -> bool:
    containers = [status for pod in operator_pods(kubectl) for status in pod["status"].get("containerStatuses", [])]
    return any(status.get("ready") for status in containers)


def tiny(namespace: str) -> dict[str, Any]:
    """Return a sweep of twenty trials of a few seconds."""
    return lorasweep(namespace, "tiny", maxTrials=20, parallelTrials=2)


def example(namespace: str) -> dict[str, Any]:
    """Return docs/examples/sweep.yaml with six trials, and rows to measure with that can be had."""
    manifest = on_cpus("s3://", 6)
    manifest["spec"]["template"]["dataset"]["evaluation"] = {"uri": HELD}
    manifest["spec"]["output"]["uri"] = f"s3://adapters/{namespace}/example"
    return manifest


@pytest.fixture(scope="module")
def held_rows(s3: Any) -> None:
    """Some rows of the demo's data set as one of their own."""
    bucket, key = split_uri(seed.DATASET_URI)
    lines = s3.get_object(Bucket=bucket, Key=key)["Body"].read().splitlines(keepends=True)
    bucket, key = split_uri(HELD)
    s3.put_object(Bucket=bucket, Key=key, Body=b"".join(lines[:HELD_ROWS]))


CASES = [
    pytest.param(tiny, TINY, ROWS, 0.001, id="twenty-tiny"),
    # Trained and measured in bfloat16, measured again in float32.
    pytest.param(example, seed.MODEL_URI, HELD, 0.01, id="six-of-the-example"),
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("manifest", "model", "rows", "within"), CASES)
def test_operators_killed_ten_times_change_nothing(
    kubectl: Kubectl,
    namespace: str,
    operator: OperatorRecord,
    s3: Any,
    held_rows: None,
    tmp_path: Path,
    manifest: Any,
    model: str,
    rows: str,
    within: float,
) -> None:
    sweep = Job(kubectl, manifest(namespace), namespace).apply()
    watched = Watched(sweep)
    with watched.watching():
        assert kill_operators(sweep, operator, KILLS) == KILLS, "it was over before"
        status = sweep.wait_phase("Succeeded", timeout=1800)
    watched.look()

    number = sweep.manifest["spec"]["maxTrials"]
    told = status["trials"]
    assert [row["number"] for row in told] == list(range(number))
    assert {count: len(uids) for count, uids in watched.uids.items()} == {f"{each:03d}": 1 for each in range(number)}
    assert watched.changed == []
    assert len(watched.final) == number
    complete = [row for row in told if row["state"] == "Complete"]
    assert status["best"]["value"] == min((row["value"] for row in complete), key=float)
    for trial in kubectl.list("lorajobs", namespace, f"tunery.dev/sweep={sweep.name}"):
        job = Job(kubectl, trial | {"kind": "LoRAJob"}, namespace)
        assert job.status["attempts"] <= 1, f"{job.name} was trained more than once\n{job.story()}"

    adapter = tmp_path / "adapter"
    published = download(s3, status["adapter"]["uri"], adapter)
    assert json.loads((adapter / "sweep.json").read_text())["trials"] == told
    assert published["lineage"]["sweep"]["trial"] == status["best"]["trial"]
    measured = plain_peft_loss(s3, adapter, model, rows)
    print(f"{sweep.name}: best.value {status['best']['value']}, plain PEFT {measured:.5f}")
    assert measured == pytest.approx(float(status["best"]["value"]), rel=within)
