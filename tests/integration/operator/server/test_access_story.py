"""Who may ask a server, against a real API server: what the replicas report, and a rollout that does not get on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit.operator.api import eventually
from kit.operator.live_server import SERVERS, Server
from kit.operator.objects import Namespace, adapterserver
from kit.operator.process import OperatorProcess

KEYS = {"apiKeysSecretRef": {"name": "keys"}}
WRONG = {"reason": "SecretNotFound", "message": "spec.access.clients names wbe, which is no key of Secret keys"}
"""What a replica remarks on."""


@pytest.fixture
def server(namespace: Namespace, operator: OperatorProcess, progress_tls: Path) -> Server:
    eventually("the namespace's ServiceAccount", lambda: namespace.get("serviceaccounts", "default"))
    access = {**KEYS, "clients": [{"name": "wbe", "models": ["tiny"]}]}
    namespace.apply(adapterserver("support", access=access))
    return Server(namespace, operator, progress_tls)


@pytest.mark.slow
def test_rules_that_bind_nobody_are_told_mended_without_new_pods_and_replaced_only_by_new_ones(
    server: Server, namespace: Namespace
) -> None:
    [pod] = server.start()
    server.report(pod, apiKeys="keys", remark=WRONG)
    status = namespace.wait_phase("support", "Degraded", SERVERS)
    assert status["failure"]["message"] == f"pod {pod}: {WRONG['message']}"
    template = server.child("deployments")["spec"]["template"]

    # The name is mended, and names a model that is none of the server's.
    namespace.patch_spec("support", SERVERS, access={"clients": [{"name": "web", "models": ["tyny"]}]})
    eventually("replicas are told", lambda: "web" in server.desired()["clients"])
    server.report(pod, apiKeys="keys")
    reason = "AdapterMissing"
    eventually("it is reported", lambda: (server.status.get("failure") or {}).get("reason") == reason)
    assert server.status["failure"]["message"].endswith("; did you mean tiny?")
    namespace.patch_spec("support", SERVERS, access={"clients": [{"name": "web", "models": ["tiny"]}]})
    assert "failure" not in namespace.wait_phase("support", "Ready", SERVERS)
    assert server.child("deployments")["spec"]["template"] == template, "no pod was replaced for any of that"

    # Other keys need new pods; until they are ready the old ones answer by the old keys.
    namespace.patch_spec("support", SERVERS, access={"apiKeysSecretRef": {"name": "others"}})
    server.wait_pods(2)
    words = "1 replica still answers under the previous rules: with the keys of Secret keys"
    eventually(
        "the old rules are told",
        lambda: words in namespace.condition("support", "Progressing", SERVERS).get("message", ""),
    )
    [new] = [each for each in server.pods() if each != pod]
    namespace.serve_pod(new)
    server.report(new, apiKeys="others")
    namespace.wait_phase("support", "Ready", SERVERS)
    assert words not in namespace.condition("support", "Progressing", SERVERS).get("message", "")


@pytest.mark.slow
def test_while_a_rollout_does_not_get_on_its_old_pods_are_told_the_list_of_their_own_secret(
    server: Server, namespace: Namespace
) -> None:
    held = {"web": ["tiny"]}
    namespace.patch_spec("support", SERVERS, access={"clients": [{"name": "web", "models": ["tiny"]}]})
    [pod] = server.start()
    eventually("replicas are told", lambda: server.desired()["clients"] == held)
    assert server.desired()["apiKeys"] == "keys"
    server.report(pod, apiKeys="keys")

    def told(secret: str, clients: dict[str, list[str]], *before: dict[str, Any]) -> bool:
        desired = server.desired()
        return (desired["apiKeys"], desired["clients"], desired["before"]) == (secret, clients, list(before))

    # No new pod is ever ready: the list of the new Secret says nothing to the old pod's.
    others = {"apiKeysSecretRef": {"name": "others"}, "clients": [{"name": "frontend", "models": ["tiny"]}]}
    namespace.patch_spec("support", SERVERS, access=others)
    of_before = {"apiKeys": "keys", "clients": held}
    eventually("both lists are told", lambda: told("others", {"frontend": ["tiny"]}, of_before))
    server.wait_pods(2)
    namespace.patch_spec("support", SERVERS, access=None)
    eventually(
        "the old list stays", lambda: of_before in server.desired()["before"] and not server.desired()["apiKeys"]
    )
    # An answer to a report says the same as the file.
    assert of_before in server.report(pod, apiKeys="keys", revision=1)["desired"]["before"]
    alias = [{"name": "prod", "targets": [{"adapter": "tiny"}]}]
    namespace.patch_spec("support", SERVERS, aliases=alias)
    eventually("an alias is told", lambda: [each["name"] for each in server.desired()["aliases"]] == ["prod"])
    assert of_before in server.desired()["before"]

    # It gets on at last, and nobody needs the old list any more.
    eventually("only the newest pod stays beside the old", lambda: len(server.pods()) == 2)
    [new] = [each for each in server.pods() if each != pod]
    namespace.serve_pod(new)
    server.report(new, apiKeys="")
    eventually("the old pod is told to end", lambda: server.pods() == [new])
    namespace.wait_phase("support", "Ready", SERVERS)
    assert of_before in server.desired()["before"], "it answers what it was asked before"
    namespace.remove_pod(pod)
    eventually("the old list is gone", lambda: told("", {}))
