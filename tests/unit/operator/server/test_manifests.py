"""The plan of a server and what is built from it: whole parts compared, and what no pod may ever have."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.serving import NO_KEYS, Desired, ServeSpec
from tunery_operator.config import Settings
from tunery_operator.manifests.server import build_desired, build_server, read_desired
from tunery_operator.observed.deployment import parse_deployment, parse_server_pod
from tunery_operator.planning.adapterserver import ServerPlan, plan_server
from tunery_operator.planning.job import Platform, Progress

from kit.operator.servers import owner, server_spec, wanted
from kit.operator.settings import settings

IMAGE = {"pullSecrets": ["registry"]}
SETTINGS = settings(image=IMAGE)
PROGRESS = Progress("https://tunery:8443", "PEM")
LABELS = {
    "app.kubernetes.io/managed-by": "tunery",
    "tunery.dev/kind": "adapterserver",
    "tunery.dev/owner": "support",
    "tunery.dev/role": "serve",
}
SELECTOR = {"tunery.dev/kind": "adapterserver", "tunery.dev/owner": "support"}
REFERENCE = {
    "apiVersion": "tunery.dev/v1alpha1",
    "kind": "AdapterServer",
    "name": "support",
    "uid": "server-uid",
    "controller": True,
    "blockOwnerDeletion": True,
}
SECRETS = {
    "model": {"uri": "s3://models/tiny", "secretRef": {"name": "models"}},
    "adapterSecretRef": {"name": "adapters"},
    "access": {"apiKeysSecretRef": {"name": "keys"}},
}


def plan(on: Settings = SETTINGS, labels: dict[str, str] | None = None, **spec: Any) -> ServerPlan:
    return plan_server(server_spec(**spec), owner(labels=labels or {}), Platform(on, PROGRESS))


def serving(part: str, **changes: Any) -> Settings:
    return settings(image=IMAGE, serving={part: changes})


def pod_of(found: ServerPlan) -> dict[str, Any]:
    spec: dict[str, Any] = build_server(found).deployment["spec"]["template"]["spec"]
    return spec


def containers(found: ServerPlan) -> dict[str, dict[str, Any]]:
    pod = pod_of(found)
    return {each["name"]: each for each in (*pod["initContainers"], *pod["containers"])}


def env(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def mounts(container: dict[str, Any]) -> dict[str, bool]:
    return {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}


def test_every_child_bears_the_owner_and_the_labels_by_which_it_is_found() -> None:
    found = plan()
    children = [*build_server(found), build_desired(found, Desired())]
    for child in children:
        assert child["metadata"]["labels"] == LABELS, child["kind"]
        assert child["metadata"]["ownerReferences"] == [REFERENCE], child["kind"]
        assert child["metadata"]["namespace"] == "ns"
    assert [(child["kind"], child["metadata"]["name"]) for child in children] == [
        ("ConfigMap", found.config_name),
        ("Deployment", "support-server"),
        ("Service", "support-server"),
        ("PodDisruptionBudget", "support-server"),
        ("NetworkPolicy", "support-server"),
        ("ConfigMap", "support-adapters"),
    ]


def test_the_deployment() -> None:
    found = plan(replicas=3, rollout={"maxSurge": 0, "maxUnavailable": 1}, labels={"kueue.x-k8s.io/queue-name": "q"})
    body = build_server(found).deployment
    assert body["metadata"]["labels"] == LABELS | {"kueue.x-k8s.io/queue-name": "q"}
    assert body["metadata"]["annotations"] == {"tunery.dev/plan": found.digest}
    template = body["spec"].pop("template")
    assert body["spec"] == {
        "replicas": 3,
        "progressDeadlineSeconds": 3600,
        "revisionHistoryLimit": 2,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "selector": {"matchLabels": SELECTOR},
    }
    assert template["metadata"]["labels"] == LABELS | {"tunery.dev/owner-uid": "server-uid"}
    view = parse_deployment({**body, "metadata": {**body["metadata"], "uid": "d"}})
    assert (view.plan, view.owner_uid, view.wanted) == (found.digest, "server-uid", 3)


def test_service_disruption_budget_and_network_policy_find_the_pods() -> None:
    built = build_server(plan())
    port = {"name": "http", "port": 8000, "targetPort": "http", "protocol": "TCP"}
    assert built.service["spec"] == {"type": "ClusterIP", "selector": SELECTOR, "ports": [port]}
    assert built.disruption_budget["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": SELECTOR},
    }
    assert built.network_policy is not None
    assert built.network_policy["spec"] == {
        "podSelector": {"matchLabels": SELECTOR},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": 8000, "protocol": "TCP"}]}],
    }
    assert build_server(plan(settings(serving={"networkPolicy": False}))).network_policy is None


def test_the_pod_meets_restricted_pod_security_as_one_user() -> None:
    pod = pod_of(plan(**SECRETS))
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 2000,
        "runAsGroup": 2000,
        "fsGroup": 2000,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert (pod["automountServiceAccountToken"], pod["terminationGracePeriodSeconds"]) == (False, 90)
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    for each in (*pod["initContainers"], *pod["containers"]):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"]["requests"] == each["resources"]["limits"]
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"configMap", "emptyDir", "secret", "projected"}
    names = [volume["name"] for volume in pod["volumes"]]
    mounted = {mount["name"] for each in containers(plan(**SECRETS)).values() for mount in each["volumeMounts"]}
    assert sorted(names) == sorted(mounted)


def test_a_platform_that_leaves_the_user_open_has_that_of_its_jobs() -> None:
    engine: dict[str, Any] = {"engine": {"runAsUser": None}}
    assert pod_of(plan(settings(serving=engine)))["securityContext"]["runAsUser"] == 65532
    ids = dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"))
    openshift = settings(serving=engine, trainer={"securityContext": ids})
    assert "runAsUser" not in pod_of(plan(openshift))["securityContext"]


def test_the_gateway_starts_before_the_engine_ends_after_it_and_answers_its_probes() -> None:
    found = containers(plan())
    assert list(found) == ["model", "gateway", "engine"]
    gateway, engine = found["gateway"], found["engine"]
    assert gateway["restartPolicy"] == "Always"
    assert gateway["command"] == ["python", "-m", "tunery_server", "gateway", "/etc/tunery/serve.json"]
    assert found["model"]["command"][3] == "fetch-model"
    paths = {
        (each["name"], probe): each[probe]["httpGet"]
        for each in (gateway, engine)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if probe in each
    }
    assert paths == {
        ("gateway", "startupProbe"): {"path": "/livez", "port": 8000},
        ("gateway", "livenessProbe"): {"path": "/livez", "port": 8000},
        ("gateway", "readinessProbe"): {"path": "/readyz", "port": 8000},
        ("engine", "startupProbe"): {"path": "/healthz/engine", "port": 8000},
        ("engine", "livenessProbe"): {"path": "/healthz/engine", "port": 8000},
    }
    assert engine["startupProbe"]["periodSeconds"] * engine["startupProbe"]["failureThreshold"] == 1800
    assert engine["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}


def test_the_engine_is_called_with_flags_that_keep_its_api_for_the_gateway() -> None:
    engine = containers(plan(engine={"maxRank": 128, "maxLoadedAdapters": 20, "args": ["--max-num-seqs=64"]}))["engine"]
    assert engine["command"] == [
        "sh",
        "-c",
        'rm -f /run/tunery/engine.sock; end() { told=1 how=TERM; if [ -z "$ends" ] && [ -r /proc/net/unix ]; '
        "then how=KILL; while read -r _ _ _ flags _ _ _ path; do "
        '[ "$flags $path" != "00010000 /run/tunery/engine.sock" ] || how=TERM; done < /proc/net/unix; fi; '
        'ends=1; kill -$how $vllm; }; vllm serve /model "$@" & vllm=$!; '
        "trap end TERM INT; code=127; while wait $vllm; now=$?; [ $now = 127 ] || code=$now; [ $told ]; "
        "do told=; done; exit $code",
        "vllm",
        "--uds=/run/tunery/engine.sock",
        "--served-model-name=tiny",
        "--enable-lora",
        "--max-loras=8",
        "--max-cpu-loras=40",
        "--max-lora-rank=128",
        "--api-server-count=1",
        "--disable-fastapi-docs",
        "--shutdown-timeout=60",
        "--gpu-memory-utilization=0.9",
        "--max-num-seqs=64",
    ]
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == "1"
    variables = env(engine)
    assert variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert (variables["VLLM_PLUGINS"], variables["HF_HUB_OFFLINE"], variables["HOME"]) == ("", "1", "/work")
    assert "TORCHDYNAMO_DISABLE" not in variables


@pytest.mark.parametrize(("memory", "space"), [("24Gi", "6"), ("2Gi", "1"), ("512Mi", "1")])
def test_on_the_cpu_the_engine_is_told_its_cache_and_to_compile_nothing(memory: str, space: str) -> None:
    spec = {"resources": {"gpus": 0, "memory": memory}, "engine": {"maxLength": 2048, "precision": "BFloat16"}}
    engine = containers(plan(serving("engine", plugins=["tunery_cpu_fix"]), **spec))["engine"]
    variables = env(engine)
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == space
    assert (variables["TORCHDYNAMO_DISABLE"], variables["VLLM_PLUGINS"]) == ("1", "tunery_cpu_fix")
    assert {"--max-model-len=2048", "--dtype=bfloat16"} <= set(engine["command"])
    assert not any(flag.startswith("--gpu-memory-utilization") for flag in engine["command"])
    assert "nvidia.com/gpu" not in engine["resources"]["limits"]


@pytest.mark.parametrize(("cpu", "threads"), [("700m", "1"), ("2", "2"), ("7500m", "7")])
def test_on_the_cpu_the_engine_has_as_many_threads_as_cores_and_binds_none(cpu: str, threads: str) -> None:
    resources = {"gpus": 0, "cpu": cpu, "memory": "8Gi"}
    engine = containers(plan(serving("engine", plugins=["tunery_cpu_fix"]), resources=resources))["engine"]
    assert env(engine)["OMP_NUM_THREADS"] == threads
    assert env(engine)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "OMP_NUM_THREADS" not in env(containers(plan())["engine"])


def test_no_secret_is_in_the_engine_and_each_only_where_it_is_needed() -> None:
    found = containers(plan(**SECRETS))
    base = "/var/run/secrets/tunery"
    secrets = {name: [path for path in mounts(each) if path.startswith(base)] for name, each in found.items()}
    assert secrets == {
        "model": [f"{base}/model", f"{base}/api-keys"],
        "gateway": [f"{base}/adapters", f"{base}/api-keys"],
        "engine": [],
    }
    assert "/var/run/tunery-progress" not in mounts(found["engine"])
    engine = mounts(found["engine"])
    assert (engine["/model"], engine["/adapters"], engine["/run/tunery"]) == (True, True, False)
    optional = [volume["secret"]["optional"] for volume in pod_of(plan(**SECRETS))["volumes"] if "secret" in volume]
    assert optional == [True, True, True]


def test_which_secret_lets_clients_in_is_read_from_a_pod_and_from_a_deployment() -> None:
    for found, secret in ((plan(**SECRETS), "keys"), (plan(), NO_KEYS)):
        built, meta = build_server(found).deployment, {"name": "p", "namespace": "team-a", "uid": "u"}
        pod = {"metadata": meta, "spec": built["spec"]["template"]["spec"], "status": {}}
        assert parse_server_pod(pod).api_keys == secret
        assert parse_deployment({**built, "metadata": meta}).api_keys == secret


def test_serve_json_says_all_that_a_replica_needs() -> None:
    found = plan(**SECRETS)
    config = build_server(found).config
    assert config["immutable"] is True
    serve = ServeSpec.model_validate_json(config["data"]["serve.json"])
    assert (serve.served_name, serve.max_rank, serve.port) == ("tiny", 64, 8000)
    assert serve.identity.uid == "server-uid"
    assert serve.adapter_secret is not None
    assert serve.api_keys is not None
    assert (serve.adapter_secret.name, serve.adapter_secret.field) == ("adapters", "spec.adapterSecretRef")
    assert (serve.api_keys.path, serve.model_secret and serve.model_secret.name) == (
        "/var/run/secrets/tunery/api-keys",
        "models",
    )
    assert json.loads(config["data"]["serve.json"])["engineSocket"] == "/run/tunery/engine.sock"


def test_a_model_in_a_claim_is_read_where_it_lies_by_every_container() -> None:
    found = plan(model={"uri": "pvc://models/tiny"})
    assert all(mounts(each)["/mnt/tunery/model"] is True for each in containers(found).values())
    assert found.serve.model_mount == "/mnt/tunery/model"


def test_adapters_without_a_secret_of_their_own_are_opened_by_the_platforms() -> None:
    secret = plan(settings(defaultOutput={"secretName": "s3"})).serve.adapter_secret
    assert secret is not None
    assert (secret.name, secret.field) == ("s3", "the platform's default output secret")
    assert plan().serve.adapter_secret is None


def test_what_is_served_and_whom_reports_trust_stand_apart_and_make_no_new_pods() -> None:
    found = plan()
    desired = Desired(revision=7, adapters=[wanted("bot"), wanted("b", manifest_sha256=None)])
    body = build_desired(found, desired)
    assert body["data"]["progress-ca.crt"] == "PEM"
    assert read_desired(body) == desired
    assert read_desired(None) == read_desired({"data": {"adapters.json": "["}}) == Desired()
    gateway = env(containers(found)["gateway"])
    assert gateway["KUBEFLOW_TRAINER_SERVER_CA_CERT"] == "/etc/tunery-adapters/progress-ca.crt"
    renewed = replace(found, progress=replace(PROGRESS, ca_pem="OTHER"))
    assert renewed.digest == found.digest


CHANGES: dict[str, dict[str, Any]] = {
    "image": {"engine": {"image": "other:1"}},
    "rank": {"engine": {"maxRank": 128}},
    "args": {"engine": {"args": ["--seed=1"]}},
    "memory": {"resources": {"memory": "48Gi"}},
    "nodes": {"scheduling": {"nodeSelector": {"a": "b"}}},
    "keys": {"access": {"apiKeysSecretRef": {"name": "keys"}}},
    "secret": {"adapterSecretRef": {"name": "s3"}},
    "claim": {"model": {"uri": "pvc://models/tiny"}},
    "rollout": {"rollout": {"maxSurge": 2}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_deployment_changes_its_digest(name: str) -> None:
    assert plan(**CHANGES[name]).digest != plan().digest


def test_adapters_and_replicas_change_no_digest() -> None:
    more = plan(replicas=5, adapters=[{"name": "a", "uri": "s3://a/b"}], adapterSelector={"matchLabels": {"a": "b"}})
    assert (more.digest, more.config_name) == (plan().digest, plan().config_name)
    assert plan(serving("server", image="example/server:2")).digest != plan().digest
    assert plan(serving("server", image="example/server:2")).config_name == plan().config_name


@pytest.mark.parametrize(
    ("on", "spec", "words"),
    [
        (serving("server", image=""), {}, "serving.server.image is empty"),
        (serving("engine", image=""), {}, "spec.engine.image: is required"),
        (
            serving("engine", allowImage=False),
            {"engine": {"image": "mine:1"}},
            "serving.engine.allowImage allows no other",
        ),
    ],
)
def test_what_the_platform_cannot_run_is_refused(on: Settings, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        plan(on, **spec)
