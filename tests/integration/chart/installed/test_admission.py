"""The chart's admission policies on a real API server: what the operator builds passes, what it does not is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from tunery_api.fetching import FetchRequest
from tunery_api.kinds import Kind
from tunery_api.runspec import ResolvedAdapter
from tunery_api.sweepstatus import TrialState, TrialStatus
from tunery_api.validation import parse_adaptermerge, parse_batchinference, parse_lorajob
from tunery_operator.manifests.job import build_job, build_service
from tunery_operator.observed.metadata import Owner, parse_owner
from tunery_operator.planning.adaptermerge import plan_merge
from tunery_operator.planning.batchinference import plan_batch
from tunery_operator.planning.batchinference import plan_report as plan_report_of_batch
from tunery_operator.planning.fetch import plan_fetch
from tunery_operator.planning.inputs import plain_input
from tunery_operator.planning.job import JobPlan, Platform
from tunery_operator.planning.lorajob import ResolvedInputs, plan_preflight, plan_publish, plan_report, plan_train
from tunery_operator.planning.lorasweep import SweepResult, plan_publish_best
from tunery_operator.planning.lorasweep import plan_report as plan_report_of_sweep
from tunery_search.space import space_of
from tunery_search.validation import parse_lorasweep

from kit.api_server import ApiServer
from kit.chart.installing import TEAM
from kit.chart.policies import patch_refusal, refusal
from kit.chart.rendering import Helm
from kit.kubectl import KubectlError
from kit.operator.objects import adaptermerge, batchinference, lorajob, lorasweep

Json = dict[str, Any]
Twist = Callable[[Json], object]
UID = "12345678-0000-0000-0000-000000000000"
FULL: Json = {
    "model": {"uri": "pvc://models/llama"},
    "dataset": {"uri": "configmap://rows/d.jsonl", "secretRef": {"name": "data"}},
    "resources": {"gpus": 1},
    "scheduling": {"serviceAccountName": "mine", "priorityClassName": "batch", "nodeSelector": {"a": "b"}},
    "cache": {"claimName": "cache"},
    "tracking": {"wandb": {"project": "p", "secretRef": {"name": "wandb"}}},
}


def owner(kind: Kind = Kind.LORAJOB, labels: dict[str, str] | None = None) -> Owner:
    return parse_owner(kind, {"metadata": {"namespace": TEAM, "name": "x", "uid": UID, "labels": labels}})


def plans(platform: Platform) -> dict[str, JobPlan]:
    """Return a plan of each task, and of what changes a pod most."""
    plain, full = parse_lorajob(lorajob("x")), parse_lorajob(lorajob("x", **FULL))
    several = parse_lorajob(lorajob("x", **(FULL | {"resources": {"gpus": 8, "nodes": 64}})))
    queued = owner(labels={"kueue.x-k8s.io/queue-name": "q"})
    known = ResolvedInputs(adapter=ResolvedAdapter(uri="s3://a/b"), revision="0123abc")
    batch = parse_batchinference(
        batchinference("x", input={"uri": "pvc://rows/in.jsonl"}, apiKeySecretRef={"name": "keys", "key": "nightly"})
    )
    sweep = parse_lorasweep(lorasweep("x"))
    row = TrialStatus(number=0, name="x-000", state=TrialState.COMPLETE)
    found, space = SweepResult(trials=[row], best=0, importance=[], end_reason="MaxTrials", saved=None), space_of(sweep)
    request = FetchRequest("ab" * 32, datetime.now(UTC) + timedelta(hours=1))
    merge = parse_adaptermerge(adaptermerge("x", [{"uri": "s3://a/one", "secretRef": {"name": "other"}}]))
    return {
        "preflight": plan_preflight(plain, owner(), platform, ResolvedInputs()),
        "train": plan_train(plain, owner(), platform, ResolvedInputs()),
        "train-full": plan_train(full, queued, platform, known),
        "train-nodes": plan_train(several, queued, platform, known),
        "preflight-full": plan_preflight(full, queued, platform, known),
        "report": plan_report(full, queued, platform, known),
        "publish": plan_publish(full, queued, platform, known, "the loss is low enough"),
        "merge": plan_merge(merge, owner(Kind.ADAPTERMERGE), platform, [plain_input("s3://a/one")]),
        "batch": plan_batch(batch, owner(Kind.BATCHINFERENCE), platform),
        "batch-report": plan_report_of_batch(batch, owner(Kind.BATCHINFERENCE), platform),
        "fetch": plan_fetch(lorajob("x", **FULL), queued, platform, request, 3600),
        "batch-fetch": plan_fetch(batchinference("x"), owner(Kind.BATCHINFERENCE), platform, request, 86400),
        "publish-best": plan_publish_best(sweep, owner(Kind.LORASWEEP), platform, found, space),
        "sweep-report": plan_report_of_sweep(sweep, owner(Kind.LORASWEEP), platform, found, space),
    }


CASES = [
    "preflight", "train", "train-full", "preflight-full", "report", "publish", "merge", "batch", "batch-report",
    "publish-best", "sweep-report", "train-nodes", "fetch", "batch-fetch",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_the_operator_builds_passes(operator: ApiServer, platform: Platform, case: str) -> None:
    assert refusal(operator, build_job(plans(platform)[case])) is None


def pod(job: Json) -> Json:
    spec: Json = job["spec"]["template"]["spec"]
    return spec


def container(job: Json) -> Json:
    first: Json = pod(job)["containers"][0]
    return first


def context(of: Json) -> Json:
    """Return the security context of a pod or a container."""
    found: Json = of["securityContext"]
    return found


def owner_of(job: Json) -> Json:
    reference: Json = job["metadata"]["ownerReferences"][0]
    return reference


def volume(job: Json, name: str, **source: Any) -> None:
    """Give a volume another source."""
    (index,) = [index for index, found in enumerate(pod(job)["volumes"]) if found["name"] == name]
    pod(job)["volumes"][index] = {"name": name, **source}


def project(job: Json, **source: Any) -> None:
    """Give the volume of the progress token another source."""
    volume(job, "progress-token", projected={"sources": [source]})


def mount(job: Json, name: str, **change: Any) -> None:
    """Change how a volume is mounted."""
    (found,) = [found for found in container(job)["volumeMounts"] if found["name"] == name]
    found.update(change)


def variable(name: str, **value: Any) -> Twist:
    return lambda job: container(job)["env"].append({"name": name, **value})


NOT_OURS = "bear its labels"
VARIABLES = "has the variables"
ONE = "one container"
COMMAND = "image's command"
NODE = "nothing of its node's"
POD = "The pod complies"
CONTAINER = "Each container complies"
MOUNTS = "mounts its run"
PLACES = "never over its program"
RENAMED = {"secretName": "s", "items": [{"key": "password", "path": "HF_TOKEN"}]}
CLAIM = {"claimName": "models", "readOnly": True}
TWISTS: list[tuple[str, Twist, str]] = [
    ("no-label", lambda j: j["metadata"]["labels"].pop("app.kubernetes.io/managed-by"), NOT_OURS),
    ("no-role", lambda j: j["metadata"]["labels"].pop("tunery.dev/role"), NOT_OURS),
    ("no-owner", lambda j: j["metadata"].pop("ownerReferences"), NOT_OURS),
    ("owner-of-another-kind", lambda j: owner_of(j).update(kind="Pod", apiVersion="v1"), NOT_OURS),
    ("owner-of-our-kinds-name", lambda j: owner_of(j).update(apiVersion="v1"), NOT_OURS),
    ("no-controller", lambda j: owner_of(j).update(controller=False), NOT_OURS),
    ("another-name", lambda j: (container(j).update(name="shell"), j["spec"].pop("podFailurePolicy")), ONE),
    ("sidecar", lambda j: pod(j)["containers"].append(container(j) | {"name": "second"}), ONE),
    ("init", lambda j: pod(j).update(initContainers=[container(j) | {"name": "init"}]), ONE),
    ("many-pods", lambda j: j["spec"].update(parallelism=50, completions=50), ONE),
    ("image", lambda j: container(j).update(image="busybox:1"), "trainer's image"),
    ("image-with-our-prefix", lambda j: container(j).update(image="tunery-trainer-evil:1"), "trainer's image"),
    ("shell", lambda j: container(j).update(command=["sh", "-c", "env"]), COMMAND),
    ("another-role", lambda j: container(j)["command"].__setitem__(3, "merge"), COMMAND),
    ("another-run", lambda j: container(j)["command"].__setitem__(4, "/mnt/tunery/model/run.json"), COMMAND),
    ("arguments", lambda j: container(j).update(args=["--help"]), COMMAND),
    ("working-directory", lambda j: container(j).update(workingDir="/mnt/tunery/model"), COMMAND),
    ("hook", lambda j: container(j).update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}), COMMAND),
    ("probe", lambda j: container(j).update(livenessProbe={"exec": {"command": ["sh"]}}), COMMAND),
    ("port", lambda j: container(j).update(ports=[{"containerPort": 80, "hostPort": 80}]), COMMAND),
    ("preload", variable("LD_PRELOAD", value="/mnt/tunery/model/evil.so"), VARIABLES),
    ("python-path", variable("PYTHONPATH", value="/mnt/tunery/model"), VARIABLES),
    ("another-value", variable("HOME", value="/mnt/tunery/model"), VARIABLES),
    ("secret-as-variable", variable("HOME", valueFrom={"secretKeyRef": {"name": "s", "key": "k"}}), VARIABLES),
    ("secrets-as-variables", lambda j: container(j).update(envFrom=[{"secretRef": {"name": "s"}}]), VARIABLES),
    ("api-token", lambda j: pod(j).update(automountServiceAccountToken=True), NODE),
    ("api-token-by-default", lambda j: pod(j).pop("automountServiceAccountToken"), NODE),
    ("host-network", lambda j: pod(j).update(hostNetwork=True), NODE),
    ("host-pid", lambda j: pod(j).update(hostPID=True), NODE),
    ("host-ipc", lambda j: pod(j).update(hostIPC=True), NODE),
    ("node", lambda j: pod(j).update(nodeName="control-plane"), NODE),
    ("host-aliases", lambda j: pod(j).update(hostAliases=[{"ip": "10.0.0.1", "hostnames": ["s3"]}]), NODE),
    ("name-servers", lambda j: pod(j).update(dnsConfig={"nameservers": ["10.0.0.1"]}), NODE),
    ("root", lambda j: context(pod(j)).update(runAsUser=0, runAsNonRoot=False), POD),
    ("no-security-context", lambda j: pod(j).pop("securityContext"), POD),
    ("root-group", lambda j: context(pod(j)).update(runAsGroup=0), POD),
    ("more-groups", lambda j: context(pod(j)).update(supplementalGroups=[0]), POD),
    ("unconfined", lambda j: context(pod(j)).update(seccompProfile={"type": "Unconfined"}), POD),
    ("sysctls", lambda j: context(pod(j)).update(sysctls=[{"name": "net.ipv4.ip_forward", "value": "1"}]), POD),
    ("escalation", lambda j: context(container(j)).update(allowPrivilegeEscalation=True), CONTAINER),
    ("no-container-context", lambda j: container(j).pop("securityContext"), CONTAINER),
    ("capability", lambda j: context(container(j))["capabilities"].update(add=["NET_ADMIN"]), CONTAINER),
    ("capabilities", lambda j: context(container(j)).pop("capabilities"), CONTAINER),
    ("root-in-container", lambda j: context(container(j)).update(runAsUser=0), CONTAINER),
    ("writable-root", lambda j: context(container(j)).update(readOnlyRootFilesystem=False), CONTAINER),
    ("host-path", lambda j: volume(j, "work", hostPath={"path": "/"}), MOUNTS),
    ("new-volume", lambda j: pod(j)["volumes"].append({"name": "x", "emptyDir": {}}), MOUNTS),
    ("another-key-of-a-secret", lambda j: volume(j, "secret-output", secret=RENAMED), MOUNTS),
    ("token-for-the-api", lambda j: project(j, serviceAccountToken={"path": "token"}), MOUNTS),
    ("projected-secret", lambda j: project(j, secret={"name": "s"}), MOUNTS),
    ("another-config-map", lambda j: volume(j, "run", configMap={"name": "kube-root-ca.crt"}), MOUNTS),
    ("writable-claim", lambda j: volume(j, "volume-model", persistentVolumeClaim={"claimName": "models"}), MOUNTS),
    ("writable-cache", lambda j: volume(j, "volume-cache", persistentVolumeClaim={"claimName": "cache"}), MOUNTS),
    ("claim-as-cache", lambda j: volume(j, "work", persistentVolumeClaim=CLAIM), MOUNTS),
    ("csi", lambda j: volume(j, "work", csi={"driver": "secrets-store.csi.k8s.io"}), MOUNTS),
    ("over-the-program", lambda j: mount(j, "volume-dataset", mountPath="/usr/local/lib/python3.12"), PLACES),
    ("out-of-the-folder", lambda j: mount(j, "volume-dataset", mountPath="/mnt/tunery/../../usr/local/lib"), PLACES),
    ("part-of-a-volume", lambda j: mount(j, "secret-output", subPath="HF_TOKEN"), PLACES),
    ("claim-over-work", lambda j: mount(j, "volume-model", mountPath="/work/hf"), PLACES),
    ("system-priority", lambda j: pod(j).update(priorityClassName="system-node-critical"), "priority classes"),
]  # fmt: skip


@pytest.mark.parametrize(("twist", "why"), [pytest.param(twist, why, id=name) for name, twist, why in TWISTS])
def test_a_twisted_job_is_refused(operator: ApiServer, platform: Platform, twist: Twist, why: str) -> None:
    job = copy.deepcopy(build_job(plans(platform)["train-full"]))
    twist(job)
    told = refusal(operator, job)
    assert told is not None
    assert why in told


OF_NODES: list[tuple[str, Twist, str]] = [
    ("65-pods", lambda j: j["spec"].update(parallelism=65, completions=65), "up to 64"),
    ("fewer-at-a-time", lambda j: j["spec"].update(parallelism=2), "up to 64"),
    ("another-name", lambda j: pod(j).update(subdomain="kubernetes"), "up to 64"),
    ("a-merge", lambda j: j["metadata"]["labels"].update({"tunery.dev/role": "merge"}), "up to 64"),
    ("another-master", variable("TUNERY_MASTER", value="evil.example.com"), VARIABLES),
    ("another-number", variable("TUNERY_NODES", value="2"), VARIABLES),
]


@pytest.mark.parametrize(("twist", "why"), [pytest.param(twist, why, id=name) for name, twist, why in OF_NODES])
def test_a_twisted_job_of_several_nodes_is_refused(
    operator: ApiServer, platform: Platform, twist: Twist, why: str
) -> None:
    job = copy.deepcopy(build_job(plans(platform)["train-nodes"]))
    twist(job)
    assert why in (refusal(operator, job) or "")


SERVES = "mounts no Secret but that of the output"
OF_FETCH: list[tuple[str, Twist, str]] = [
    ("no-deadline", lambda j: j["spec"].pop("activeDeadlineSeconds"), SERVES),
    ("longer", lambda j: j["spec"].update(activeDeadlineSeconds=86401), SERVES),
    ("never-deleted", lambda j: j["spec"].pop("ttlSecondsAfterFinished"), SERVES),
    (
        "another-secret",
        lambda j: pod(j)["volumes"].append({"name": "secret-model", "secret": {"secretName": "m"}}),
        SERVES,
    ),
    ("claim", lambda j: pod(j)["volumes"].append({"name": "volume-model", "persistentVolumeClaim": CLAIM}), SERVES),
    ("config-map", lambda j: pod(j)["volumes"].append({"name": "volume-x", "configMap": {"name": "x"}}), SERVES),
    (
        "progress-token",
        lambda j: pod(j)["volumes"].append(
            {
                "name": "progress-token",
                "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "tunery-progress"}}]},
            }
        ),
        SERVES,
    ),
    ("port", lambda j: container(j).update(ports=[{"containerPort": 8070}]), COMMAND),
    ("as-a-batch", lambda j: j["metadata"]["labels"].update({"tunery.dev/role": "batch"}), "trainer's image"),
    ("two-pods", lambda j: j["spec"].update(parallelism=2, completions=2), ONE),
]


@pytest.mark.parametrize(("twist", "why"), [pytest.param(twist, why, id=name) for name, twist, why in OF_FETCH])
def test_a_twisted_job_that_serves_results_is_refused(
    operator: ApiServer, platform: Platform, twist: Twist, why: str
) -> None:
    job = copy.deepcopy(build_job(plans(platform)["fetch"]))
    twist(job)
    assert why in (refusal(operator, job) or "")


def test_the_service_of_nodes_is_of_its_own_pods(operator: ApiServer, platform: Platform) -> None:
    built = build_service(plans(platform)["train-nodes"])
    assert refusal(operator, built) is None
    twists: list[Twist] = [
        lambda s: s["spec"].update(selector={"app": "bank"}),
        lambda s: s["spec"]["selector"].update({"tunery.dev/owner-uid": "another"}),
        lambda s: s["spec"].update(clusterIP=""),
        lambda s: s["metadata"].update(name="tunery-webhook"),
        lambda s: s["metadata"]["ownerReferences"][0].update(kind="LoRASweep"),
    ]
    for twist in twists:
        body = copy.deepcopy(built)
        twist(body)
        assert "the Service of the pods of one LoRAJob" in (refusal(operator, body) or "")


@pytest.mark.parametrize(
    ("case", "other", "why"),
    [
        ("batch", "train", "of a batch or"),
        ("train", "batch", "of a batch or"),
        ("fetch", "train", "of a batch or"),
        ("train", "fetch", "of a batch or"),
    ],
)
def test_no_kind_runs_the_program_of_another(
    operator: ApiServer, platform: Platform, case: str, other: str, why: str
) -> None:
    found = plans(platform)
    job, foreign = build_job(found[case]), build_job(found[other])
    container(job)["image"] = container(foreign)["image"]
    assert why in (refusal(operator, job) or "")
    job = build_job(found[case])
    container(job)["command"][2] = container(foreign)["command"][2]
    assert COMMAND in (refusal(operator, job) or "")


def test_a_key_of_a_secret_is_mounted_under_its_own_name_or_not_at_all(operator: ApiServer, platform: Platform) -> None:
    job = build_job(plans(platform)["batch"])
    volume(job, "secret-api-key", secret=RENAMED)
    assert MOUNTS in (refusal(operator, job) or "")


@pytest.mark.parametrize("namespace", ["kube-system", "kube-public", "kube-node-lease"])
def test_nothing_is_created_in_the_namespaces_of_the_system(
    operator: ApiServer, platform: Platform, namespace: str
) -> None:
    body = build_job(plans(platform)["train"])
    body["metadata"]["namespace"] = namespace
    assert "admissionPolicy.deniedNamespaces" in (refusal(operator, body) or "")


def test_others_create_jobs_as_ever(installed: ApiServer, operator: ApiServer) -> None:
    del operator
    told = installed.run("create", "job", "other", "--image=busybox:1", "-n", "kube-system", "--dry-run=server")
    assert "created" in told


@pytest.fixture(scope="module")
def job(installed: ApiServer, operator: ApiServer, platform: Platform) -> str:
    """A Job of an object that is there, created by the operator."""
    installed.apply(lorajob("real"), namespace=TEAM)
    body = installed.get("lorajob", "real", TEAM)
    assert body is not None
    plan = plan_train(parse_lorajob(body), parse_owner(Kind.LORAJOB, body), platform, ResolvedInputs())
    built = build_job(plan)
    built["spec"]["suspend"] = True
    operator.create(built, TEAM)
    return plan.name


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({"spec": {"suspend": False}}, id="suspend"),
        pytest.param({"metadata": {"labels": {"tunery.dev/done": "true"}}}, id="done"),
        pytest.param({"metadata": {"annotations": {"tunery.dev/suspended-by": "spec"}}}, id="annotation"),
    ],
)
def test_the_operator_changes_its_jobs(operator: ApiServer, job: str, patch: Json) -> None:
    assert patch_refusal(operator, "job", job, patch) is None


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}, id="pod"),
        pytest.param({"metadata": {"labels": {"tunery.dev/role": "merge"}}}, id="role"),
        pytest.param({"metadata": {"ownerReferences": None}}, id="owner"),
    ],
)
def test_the_operator_changes_no_pod_and_no_owner(operator: ApiServer, job: str, patch: Json) -> None:
    assert "changes nothing of a Job's pods" in (patch_refusal(operator, "job", job, patch) or "")


def test_the_operator_lets_other_peoples_jobs_alone(installed: ApiServer, operator: ApiServer) -> None:
    foreign = yaml.safe_load(
        installed.run("create", "job", "foreign", "--image=busybox:1", "--dry-run=client", "-o", "yaml")
    )
    foreign["spec"]["suspend"] = True
    installed.apply(foreign, namespace=TEAM)
    assert "only Jobs of its own" in (patch_refusal(operator, "job", "foreign", {"spec": {"suspend": False}}) or "")
    with pytest.raises(KubectlError, match="only Jobs of its own"):
        operator.delete("job", "foreign", TEAM, wait=False)


def test_the_operator_deletes_its_jobs(installed: ApiServer, operator: ApiServer, job: str) -> None:
    operator.run("delete", "job", job, "-n", TEAM, "--dry-run=server")
    assert installed.get("job", job, TEAM) is not None


def test_the_policies_can_be_left_out(helm: Helm) -> None:
    assert helm.render("admissionPolicy.enabled=false").of("ValidatingAdmissionPolicy") == []
