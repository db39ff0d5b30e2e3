"""Beside a real Kueue: jobs wait their turn, give way and come back, and nobody fights over `suspend`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.conftest import LONG, SETTINGS, Launch, checkpointed, lorajob, resumed
from e2e.test_sweep import lorasweep

from kit import kueue
from kit.environment import images, is_existing
from kit.installation import ROOT, install
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.published import list_keys
from tools.cluster import binaries, scratchimage
from tools.cluster.local import LocalCluster
from tools.cluster.paths import default_state_dir

pytestmark = pytest.mark.slow

ONE_AT_A_TIME = "1"
"""Cores of a quota in which one job of 800m fits."""
PREFLIGHT_CORES = "200m"
FIGHT_SECONDS = 15
SHORT: dict[str, Any] = {"training": LONG["training"] | {"maxSteps": 20}}
ENDLESS: dict[str, Any] = LONG | {"training": LONG["training"] | {"maxSteps": 100_000}}
"""What must not end by itself while others are looked at."""
RISES_FOR_ONE_THING = 2


@pytest.fixture(scope="module", autouse=True)
def real_kueue(kubectl: Kubectl, installed: None) -> Iterator[None]:
    """Kueue for the tests of this file; its webhook then leaves the others alone."""
    if is_existing():
        pytest.skip("a Kueue of our own is not for a cluster of yours")
    image = scratchimage.ensure(scratchimage.KUEUE, LocalCluster(default_state_dir()).registry)
    kueue.install(kubectl, binaries.kueue_chart(), image)
    yield
    kueue.uninstall(kubectl)


class Queues:
    """The queues of one namespace; a queue's ClusterQueue goes with the test."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._namespace = namespace
        self._made: list[str] = []

    def make(self, name: str, cpu: str = ONE_AT_A_TIME) -> None:
        """Make a LocalQueue with a quota of its own, and wait until Kueue takes jobs for it."""
        self._kubectl.apply(*kueue.queue(self._namespace, name, cpu))
        self._made.append(f"{self._namespace}-{name}")
        where = ("-n", self._namespace, "--timeout=60s")
        self._kubectl.run("wait", "--for=condition=Active", f"localqueues.kueue.x-k8s.io/{name}", *where)

    def remove(self) -> None:
        """Remove the ClusterQueues; while workloads hold them they stay, and go with Kueue."""
        for name in self._made:
            self._kubectl.delete("clusterqueues.kueue.x-k8s.io", name, wait=False)


@pytest.fixture
def queues(kubectl: Kubectl, namespace: str) -> Iterator[Queues]:
    made = Queues(kubectl, namespace)
    yield made
    made.remove()


@pytest.fixture
def queued(kubectl: Kubectl, namespace: str) -> Launch:
    """Return a function that applies a LoRAJob with Kueue's labels: its queue, and perhaps a priority."""

    def apply(name: str, queue: str, priority: str | None = None, **blocks: Any) -> Job:
        manifest = lorajob(namespace, name, **(LONG | blocks))
        chosen = {kueue.PRIORITY_LABEL: priority} if priority else {}
        manifest["metadata"]["labels"] = {kueue.QUEUE_LABEL: queue, **chosen}
        return Job(kubectl, manifest, namespace).apply()

    return apply


def generation(job: Job, role: str = "train") -> int:
    """Return how often the spec of a batch Job was written."""
    (batch,) = job.jobs(role)
    number: int = batch["metadata"]["generation"]
    return number


def writes_in_peace(job: Job, role: str = "train") -> int:
    """Return by how much the generation of a Job rises while nobody does anything, its owner being edited apart."""
    before = generation(job, role)
    job.kubectl.run("label", job.kind, job.name, "-n", job.namespace, "touched=yes", "--overwrite")
    time.sleep(FIGHT_SECONDS)
    return generation(job, role) - before


def test_a_default_queue_holds_jobs_that_name_none(launch: Launch, queues: Queues) -> None:
    queues.make("default")
    first = launch("first", **ENDLESS)
    checkpointed(first)
    assert first.status["queue"] == "default"
    assert generation(first) <= 1 + RISES_FOR_ONE_THING  # made; admitted
    second = launch("second", **LONG)
    assert second.wait_phase("Queued", timeout=60)["queue"] == "default"
    assert writes_in_peace(second) == 0
    assert writes_in_peace(first) == 0
    assert second.pods("train") == []
    assert second.status["phase"] == "Queued"
    first.kubectl.delete(first.kind, first.name, first.namespace)
    second.wait_phase("Starting", "Downloading", "Training", timeout=120)
    assert generation(second) <= 1 + RISES_FOR_ONE_THING


def test_suspended_while_queued_while_running_and_back(queued: Launch, queues: Queues) -> None:
    queues.make("team-a")
    runs = queued("runs", "team-a")
    checkpointed(runs)
    waits = queued("waits", "team-a")
    waits.wait_phase("Queued", timeout=60)
    assert waits.condition("QuotaReserved")["status"] == "False"

    waits.patch_spec(suspend=True)
    waits.wait_phase("Suspended", timeout=30)
    runs.patch_spec(suspend=True)
    runs.wait_phase("Suspended", timeout=150)
    time.sleep(FIGHT_SECONDS)
    for job in (runs, waits):
        assert job.status["phase"] == "Suspended"
        assert [pod for pod in job.pods("train") if pod["status"]["phase"] in {"Pending", "Running"}] == []

    waits.patch_spec(suspend=False)  # the quota is free: whoever comes back first has it
    waits.wait_phase("Starting", "Downloading", "Training", timeout=90)
    runs.patch_spec(suspend=False)
    runs.wait_phase("Queued", timeout=60)
    waits.patch_spec(suspend=True)
    runs.wait_phase("Succeeded", timeout=500)
    assert resumed(runs)


def test_stopped_while_admitted_and_while_it_waits(kubectl: Kubectl, queued: Launch, queues: Queues, s3: Any) -> None:
    queues.make("team-a")
    runs = queued("runs", "team-a", **ENDLESS)
    checkpointed(runs)
    waits, next_one = queued("waits", "team-a"), queued("next", "team-a", **SHORT)
    for job in (waits, next_one):
        job.wait_phase("Queued", timeout=60)

    waits.patch_spec(stop="not needed any more")
    waits.wait_phase("Stopped", timeout=30)
    assert waits.jobs("train") == []
    assert "nothing to publish" in waits.condition("Stopped")["message"]
    assert waits.condition("QuotaReserved")["reason"] == "Released"
    assert "adapter" not in waits.status
    assert next_one.status["phase"] == "Queued", "no quota was held by what waited"

    runs.patch_spec(stop="the loss is low enough")
    status = runs.wait_phase("Stopped", timeout=300)
    assert status["adapter"]["uri"] == runs.manifest["spec"]["output"]["uri"]
    assert "manifest.json" in list_keys(s3, status["adapter"]["uri"])
    assert (status["attempts"], runs.jobs("train")) == (1, [])
    assert _workload_of(runs, "publish") == [], "publishing takes no quota of a queue"
    next_one.wait_phase("Succeeded", timeout=400)  # the quota was given back

    stopped = {job.name: job.status for job in (runs, waits)}
    for job in (runs, waits):
        kubectl.run("label", job.kind, job.name, "-n", job.namespace, "touched=yes", "--overwrite")
    time.sleep(FIGHT_SECONDS)
    for job in (runs, waits):
        assert job.status == stopped[job.name], "nobody has touched what is over"
        assert job.jobs("train") == []


def _workload_of(job: Job, role: str) -> list[dict[str, Any]]:
    """Return Kueue's Workloads of the batch Jobs of a role."""
    uids = {batch["metadata"]["uid"] for batch in job.jobs(role)}
    workloads = job.kubectl.list("workloads.kueue.x-k8s.io", job.namespace)
    return [each for each in workloads if uids & {owner["uid"] for owner in each["metadata"]["ownerReferences"]}]


def test_preempted_by_a_higher_priority_and_resumed(
    kubectl: Kubectl, queued: Launch, queues: Queues, namespace: str
) -> None:
    low, high = f"{namespace}-low", f"{namespace}-high"
    kubectl.apply(kueue.priority_class(low, 10), kueue.priority_class(high, 1000))
    queues.make("team-a")
    giving = queued("giving", "team-a", priority=low)
    checkpointed(giving)
    before = generation(giving)
    urgent = queued("urgent", "team-a", priority=high, **SHORT)
    giving.wait_phase("Queued", timeout=150)
    urgent.wait_phase("Succeeded", timeout=300)
    status = giving.wait_phase("Succeeded", timeout=500)
    assert resumed(giving)
    assert status["attempts"] == 2, giving.story()
    # Kueue evicted it, then admitted it again; nobody else wrote.
    assert generation(giving) - before <= 2 * RISES_FOR_ONE_THING
    assert len(giving.jobs("train")) == 1


def test_preflight_waits_in_its_own_queue_or_in_the_owners(
    kubectl: Kubectl, environment: dict[str, str], queued: Launch, queues: Queues
) -> None:
    checked = SHORT | {"preflight": "Required"}
    queues.make("checks", cpu="100m")
    queues.make("team-a")
    small = f"preflight.resources.cpu={PREFLIGHT_CORES}"
    try:
        install(kubectl, images(environment), small, "preflight.queueName=checks")
        own = queued("own", "team-a", **checked)
        wait_for("preflight to be queued", lambda: own.condition("Preflight").get("reason") == "PreflightQueued", 60)
        assert _queue(own, "preflight") == "checks"
        assert writes_in_peace(own, "preflight") == 0
        queues.make("checks", cpu="1")  # room: Kueue lets it in
        own.wait_phase("Succeeded", timeout=400)
        assert _queue(own, "train") == "team-a"

        install(kubectl, images(environment), small, "preflight.queueFromOwner=true")
        with_owner = queued("with-owner", "team-a", **checked)
        with_owner.wait_phase("Succeeded", timeout=400)
        assert _queue(with_owner, "preflight") == _queue(with_owner, "train") == "team-a"
    finally:
        install(kubectl, images(environment), *SETTINGS)


def _queue(job: Job, role: str) -> str:
    (batch,) = job.jobs(role)
    queue: str = batch["metadata"]["labels"][kueue.QUEUE_LABEL]
    return queue


def test_trials_of_a_sweep_wait_for_each_other(kubectl: Kubectl, namespace: str, queues: Queues) -> None:
    queues.make("team-a")
    manifest = lorasweep(namespace, "sweep", maxTrials=4, parallelTrials=3)
    manifest["metadata"]["labels"] = {kueue.QUEUE_LABEL: "team-a"}
    manifest["spec"]["template"] |= {"training": LONG["training"] | {"maxSteps": 100}}
    del manifest["spec"]["template"]["training"]["learningRate"]
    sweep = Job(kubectl, manifest, namespace).apply()
    trials = [Job(kubectl, {"kind": "LoRAJob", "metadata": {"name": f"sweep-{n:03d}"}}, namespace) for n in range(4)]

    def one_trains_and_others_wait() -> list[Job]:
        phases = {trial.name: trial.status.get("phase") for trial in trials}
        reason = sweep.condition("Searching").get("reason")
        known = "Training" in phases.values() and reason == "TrialsQueued"
        return [trial for trial in trials if phases[trial.name] == "Queued"] if known else []

    wait_for("a trial that waits beside one that trains", one_trains_and_others_wait, 400)
    assert sweep.status["phase"] == "Searching"
    made = len(kubectl.list("lorajobs", namespace, "tunery.dev/sweep=sweep"))
    assert made < len(trials), "no other is made while one waits"

    together = 0
    while sweep.status.get("phase") == "Searching":
        pods = kubectl.list("pods", namespace, "tunery.dev/role=train")
        together = max(together, sum(pod["status"]["phase"] == "Running" for pod in pods))
        time.sleep(1)
    sweep.wait_phase("Succeeded", timeout=300)
    assert together <= 1, "there was room for one"
    # Made and admitted: neither Kueue nor the operator has written `suspend` against the other.
    assert [generation(trial) <= 1 + RISES_FOR_ONE_THING for trial in trials] == [True] * len(trials)


def test_the_example_is_complete(kubectl: Kubectl, namespace: str) -> None:
    told = kubectl.run("apply", "-n", namespace, "--dry-run=server", "-f", str(ROOT / "docs/examples/kueue.yaml"))
    assert [line.split("/")[0] for line in told.splitlines()] == [
        "resourceflavor.kueue.x-k8s.io",
        "clusterqueue.kueue.x-k8s.io",
        "localqueue.kueue.x-k8s.io",
        "workloadpriorityclass.kueue.x-k8s.io",
        "lorajob.tunery.dev",
    ]


def test_the_pods_that_train_together_start_together_or_wait(
    kubectl: Kubectl, queued: Launch, queues: Queues, namespace: str
) -> None:
    """Both pods or none; suspended and resumed; preempted and resumed."""
    low, high = f"{namespace}-low", f"{namespace}-high"
    kubectl.apply(kueue.priority_class(low, 10), kueue.priority_class(high, 1000))
    resources = {"nodes": 2, "gpus": 0, "cpu": "400m", "memory": "2Gi", "ephemeralStorage": "2Gi"}
    two: dict[str, Any] = {"resources": resources, "training": LONG["training"] | {"gradientAccumulation": 2}}
    queues.make("team-a", cpu="700m")  # room for one of the two
    job = queued("together", "team-a", priority=low, **two)
    job.wait_phase("Queued", timeout=60)
    time.sleep(FIGHT_SECONDS)
    assert job.pods("train") == []
    queues.make("team-a", cpu=ONE_AT_A_TIME)
    checkpointed(job)
    assert job.status["pods"] == "2/2"
    assert generation(job) <= 1 + RISES_FOR_ONE_THING

    job.patch_spec(suspend=True)
    job.wait_phase("Suspended", timeout=150)
    assert [pod for pod in job.pods("train") if pod["status"]["phase"] in {"Pending", "Running"}] == []
    job.patch_spec(suspend=False)
    job.wait_phase("Training", timeout=120)

    urgent = queued("urgent", "team-a", priority=high, **SHORT)
    job.wait_phase("Queued", timeout=150)
    urgent.wait_phase("Succeeded", timeout=300)
    status = job.wait_phase("Succeeded", timeout=500)
    assert resumed(job)
    assert status["attempts"] == 3, job.story()
    assert len(job.jobs("train")) == 1
