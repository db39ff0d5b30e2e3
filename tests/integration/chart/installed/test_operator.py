"""The operator as the chart configures it: with the chart's environment, certificate and rights, and no others."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator

import pytest

from kit import kubectl_yaml
from kit.api_server import ApiServer
from kit.chart.installing import TEAM
from kit.chart.rendering import CHART, VERSION, Rendered
from kit.chart.running import Operator, running_operator
from kit.jobs import Job
from kit.kubectl import wait_for
from kit.operator.objects import lorasweep


@pytest.fixture(scope="module")
def operator(installed: ApiServer, rendered: Rendered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """Run the operator until the module ends; it leads."""
    with running_operator(installed, rendered, tmp_path_factory.mktemp("operator")) as running:
        wait_for("the operator to lead", running.leads, timeout=30)
        yield running


@pytest.mark.slow
def test_a_job_gets_its_preflight(installed: ApiServer, operator: Operator) -> None:
    manifest = kubectl_yaml.load((CHART.parents[1] / "docs" / "examples" / "lora.yaml").read_text())
    job = Job(installed, manifest, TEAM).apply()
    (preflight,) = wait_for("the preflight Job", lambda: job.jobs("preflight"), timeout=30)
    (pod,) = wait_for("its pod, which restricted Pod Security admits", lambda: job.pods("preflight"), timeout=30)
    (owner,) = preflight["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("LoRAJob", "lora", True)
    assert pod["spec"]["containers"][0]["image"] == f"tunery-trainer:{VERSION}"
    wait_for("a phase", lambda: job.status.get("phase") in {"Pending", "Preflight"}, timeout=30)
    installed.delete("lorajob", "lora", TEAM)
    assert "forbidden" not in operator.log().lower()


@pytest.mark.slow
def test_a_sweep_gets_its_trial_and_suspends_it(installed: ApiServer, operator: Operator) -> None:
    installed.apply(lorasweep("support"), namespace=TEAM)
    trial = wait_for("the first trial", lambda: installed.get("lorajob", "support-000", TEAM), timeout=60)
    uid = (installed.get("lorasweep", "support", TEAM) or {})["metadata"]["uid"]
    assert trial["spec"]["output"]["uri"] == f"s3://adapters/support-trials/{uid}/000"
    job = Job(installed, trial, TEAM)
    wait_for("its preflight", lambda: job.jobs("preflight"), timeout=30)
    suspend(installed, "support", True)
    wait_for("the trial to be suspended", lambda: suspends(installed, "support-000"), timeout=30)
    suspend(installed, "support", False)
    wait_for("the trial to go on", lambda: not suspends(installed, "support-000"), timeout=30)
    installed.delete("lorasweep", "support", TEAM)
    wait_for("its trial to go with it", lambda: installed.get("lorajob", "support-000", TEAM) is None, timeout=30)
    assert "forbidden" not in operator.log().lower()


def suspend(kubectl: ApiServer, name: str, suspended: bool) -> None:
    """Suspend a LoRASweep, or let it go on."""
    patch = json.dumps({"spec": {"suspend": suspended}})
    kubectl.run("patch", "lorasweep", name, "-n", TEAM, "--type=merge", "-p", patch)


def suspends(kubectl: ApiServer, name: str) -> bool:
    """Tell whether a LoRAJob is to be suspended."""
    return bool((kubectl.get("lorajob", name, TEAM) or {"spec": {}})["spec"].get("suspend"))


@pytest.mark.slow
def test_its_events_are_taken(installed: ApiServer, operator: Operator) -> None:
    manifest = kubectl_yaml.load((CHART.parents[1] / "docs" / "examples" / "qlora.yaml").read_text())
    job = Job(installed, manifest, TEAM).apply()
    wait_for("an event", lambda: {event["reason"] for event in job.events()}, timeout=30)
    installed.delete("lorajob", "qlora", TEAM)
    assert "forbidden" not in operator.log().lower()


@pytest.mark.slow
def test_pods_can_verify_the_progress_endpoint_and_a_stranger_is_refused(operator: Operator) -> None:
    context = ssl.create_default_context(cafile=str(operator.folder / "ca.crt"))
    # What Python 3.13 asks of a certificate by default.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_connection(("127.0.0.1", operator.progress_port), timeout=10) as plain:
        connection = http.client.HTTPConnection("tunery.tunery-system.svc")
        connection.sock = context.wrap_socket(plain, server_hostname="tunery.tunery-system.svc")
        connection.request("POST", "/", body="{}", headers={"Authorization": "Bearer not-a-token"})
        assert connection.getresponse().status == 401
        connection.close()
