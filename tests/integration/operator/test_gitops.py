"""How GitOps tools read our objects: kstatus, by which Flux waits, and Argo CD's health check, each as they run it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunery_api.kinds import Kind
from tunery_api.status import FINAL_PHASES

from kit.installation import ROOT
from kit.kubectl import Kubectl
from kit.operator.objects import UNSEEN, Namespace, adaptermerge, batchinference, lorajob, lorasweep
from kit.operator.standings import DIVERGED, STANDINGS, as_object
from tools.cluster import binaries
from tools.cluster.shell import run

Json = dict[str, Any]
CHECKS = yaml.safe_load((ROOT / "docs" / "gitops" / "argocd-cm.yaml").read_text())["data"]


def verdicts(program: list[str | Path], objects: list[Json]) -> list[str]:
    return [each["status"] for each in json.loads(run(program, stdin=json.dumps(objects)))]


@pytest.fixture(scope="session")
def health_check(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The health check of a LoRAJob, which is that of all kinds, in Argo CD's interpreter."""
    script = tmp_path_factory.mktemp("argocd") / "health.lua"
    script.write_text(CHECKS["resource.customizations.health.tunery.dev_LoRAJob"])
    return [binaries.argolua() / "argolua", script]


def unseen() -> list[Json]:
    """Return an object that is new, and one whose spec has changed since it was seen."""
    done = STANDINGS["has succeeded"]
    return [as_object(done) | {"status": UNSEEN}, as_object(done, generation=9)]


def test_every_kind_has_its_health_check() -> None:
    assert set(CHECKS) == {f"resource.customizations.health.tunery.dev_{kind.value}" for kind in Kind}
    assert len(set(CHECKS.values())) == 1


@pytest.mark.slow
def test_argo_cd_reads_where_an_object_stands(health_check: list[str | Path]) -> None:
    found = verdicts(health_check, [as_object(each) for each in STANDINGS.values()])
    assert dict(zip(STANDINGS, found, strict=True)) == {name: each.argo for name, each in STANDINGS.items()}
    assert verdicts(health_check, [*unseen(), {"metadata": {"generation": 1}}]) == ["Progressing"] * 3


@pytest.mark.slow
def test_argo_cd_says_why(health_check: list[str | Path]) -> None:
    failed = json.loads(run(health_check, stdin=json.dumps([as_object(STANDINGS["has failed"])])))
    assert failed[0]["message"] == "Failed: LossDiverged: loss is NaN at step 7"


@pytest.mark.slow
def test_kstatus_reads_where_an_object_stands() -> None:
    """Long for its first build, some twenty seconds of a core."""
    program: list[str | Path] = [binaries.kstatus() / "kstatus"]
    found = verdicts(program, [as_object(each) for each in STANDINGS.values()])
    assert dict(zip(STANDINGS, found, strict=True)) == {name: each.kstatus for name, each in STANDINGS.items()}
    assert verdicts(program, unseen()) == ["InProgress"] * 2
    gone = as_object(STANDINGS["trains"], deletionTimestamp="2026-01-31T12:00:00Z")
    assert verdicts(program, [gone]) == ["Terminating"]


@pytest.mark.slow
def test_a_job_on_its_way_is_never_taken_for_done(
    namespace: Namespace, api_server: Kubectl, health_check: list[str | Path]
) -> None:
    """Of every state that the API server ever had of it, a failure and another try included."""
    created = namespace.apply(lorajob("g", preflight="Skip", retries=0))
    assert created["status"] == UNSEEN
    namespace.end_pod(namespace.run_pod("g-train"), 64, DIVERGED)
    finished = ["wait", "lorajob/g", "-n", namespace.name, "--for=condition=Finished", "--timeout=20s"]
    api_server.run(*finished)
    shown = namespace.api.columns(namespace.path("lorajobs", "g"))
    assert (shown["Phase"], shown["Reason"]) == ("Failed", "LossDiverged")
    namespace.annotate("g", retry="1")
    namespace.wait_reason("g", "Unschedulable")
    shown = namespace.api.columns(namespace.path("lorajobs", "g"))
    assert (shown["Phase"], shown["Reason"]) == ("Starting", "Unschedulable")
    api_server.run("wait", "lorajob/g", "-n", namespace.name, "--for=condition=Finished=false", "--timeout=1s")
    namespace.finish("g")
    api_server.run(*finished)

    states = [created, *history(namespace, created)]
    for each in states:
        ended = each["status"].get("phase") in FINAL_PHASES
        assert ended == (("Finished", "True") in conditions_of(each)), each["status"]
    health = verdicts(health_check, states)
    changes = [one for one, before in zip(health, [None, *health], strict=False) if one != before]
    assert changes == ["Progressing", "Degraded", "Progressing", "Healthy"]


@pytest.mark.slow
def test_a_change_after_the_end_moves_the_observed_generation(
    namespace: Namespace, api_server: Kubectl, health_check: list[str | Path]
) -> None:
    """A change of the spec after the end moves the observed generation of each condition, by one write."""
    merge = adaptermerge("e", [{"uri": "s3://a/one"}, {"uri": "s3://a/two"}])
    bodies = [lorajob("e"), merge, batchinference("e"), lorasweep("e")]
    plurals = [f"{body['kind'].lower()}s" for body in bodies]
    objects = [f"{plural}/e" for plural in plurals]

    def wait(*conditions: str) -> None:
        for each in conditions:
            api_server.run("wait", *objects, "-n", namespace.name, f"--for=condition={each}", "--timeout=20s")

    def read() -> list[Json]:
        return [namespace.api.call("GET", namespace.path(plural, "e")) for plural in plurals]

    for body in bodies:
        body["spec"]["output"] = {}
        namespace.apply(body)
    wait("Finished", "Stalled")
    before = read()
    assert verdicts(health_check, before) == ["Degraded"] * len(before)
    assert {body["status"]["reason"] for body in before} == {"InvalidSpec"}
    for plural in plurals:
        namespace.patch_spec("e", plural, ttlSecondsAfterFinished=86_400)
    wait("Finished", "Failed", "Stalled", "Validated=false", "Succeeded=false")
    after = read()
    time.sleep(1)
    assert read() == after, "it is not written again and again"
    for earlier, new in zip(before, after, strict=True):
        generation = new["metadata"]["generation"]
        assert generation == earlier["metadata"]["generation"] + 1
        assert {each["observedGeneration"] for each in new["status"]["conditions"]} == {generation}


def conditions_of(body: Json) -> list[tuple[str, str]]:
    return [(each["type"], each["status"]) for each in body["status"].get("conditions", [])]


def history(namespace: Namespace, created: Json) -> list[Json]:
    """Return every later state of an object, by a watch from its first version."""
    version, name = created["metadata"]["resourceVersion"], created["metadata"]["name"]
    query = f"?watch=1&resourceVersion={version}&fieldSelector=metadata.name%3D{name}&timeoutSeconds=1"
    lines = namespace.api.stream(namespace.path("lorajobs") + query).data.splitlines()
    return [json.loads(line)["object"] for line in lines]
