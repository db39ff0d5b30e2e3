"""The operator is killed while a pod trains: nothing is lost, and nothing starts twice."""

from __future__ import annotations

from kit.operator.process import OperatorProcess
from kit.workflows import Tenant


def test_a_run_that_ends_while_no_operator_runs_is_published_once(tenant: Tenant, operator: OperatorProcess) -> None:
    tenant.apply(tenant.lorajob("steady"))
    tenant.wait_running("steady")
    tenant.wait_event("steady", "PodStarted")
    operator.kill()
    (pod,) = tenant.processes("train")
    pod.join(120)
    operator.start()
    status = tenant.wait_phase("steady", "Succeeded")
    assert status["attempts"] == 1
    assert len(tenant.processes("train")) == 1
    tenant.wait_event("steady", "Succeeded")
    told = tenant.event_reasons("steady")
    # The phase Starting comes again between two reports of a pod.
    assert {reason: told.count(reason) for reason in ("PodStarted", "AdapterUploaded", "Succeeded")} == {
        "PodStarted": 1,
        "AdapterUploaded": 1,
        "Succeeded": 1,
    }
