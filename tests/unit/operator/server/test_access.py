"""Who may ask a server: rules that lead nowhere are told, and so are replicas that answer under those of before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunery_api.errors import FieldError
from tunery_api.serving import NO_KEYS, ClientRules, Desired
from tunery_operator.observed.deployment import ContainerView, ServerPodView
from tunery_operator.planning.desired import resolve
from tunery_operator.planning.resolution import MAX_BEFORE, UNKNOWN_MOUNTS, ApiKeyMounts, Resolution, UnknownModel
from tunery_operator.status.server.snapshot import ServerSnapshot

from kit.operator.servers import by_name, deployment, heard, published, reported, server_pod, server_spec
from kit.operator.serverstatuskit import compute, condition, events_of, snapshot

KEYS = {"apiKeysSecretRef": {"name": "keys"}}
NAMED = [{"name": "bot", "uri": "s3://adapters/bot"}]
TEAM = {"adapterSelector": {"matchLabels": {"team": "support"}}}
ALIASES = [{"name": "bot:prod", "targets": [{"adapter": "bot"}]}]


def resolved(*models: str, **spec: Any) -> Resolution:
    """Return what becomes of a spec whose client `web` may ask for these models."""
    access = {**KEYS, "clients": [{"name": "web", "models": list(models)}]}
    found = by_name(published("selected"), published("training", phase="Training", uri=None))
    return resolve(server_spec(access=access, aliases=ALIASES, **spec), found, Desired())


# Models that clients may ask for


@pytest.mark.parametrize("spec", [{"adapters": NAMED}, {"adapters": NAMED, **TEAM}], ids=["named", "selected"])
def test_base_adapters_and_aliases_are_known(spec: dict[str, Any]) -> None:
    known = ["tiny", "bot", "bot:prod", *(["selected", "training"] if "adapterSelector" in spec else [])]
    assert resolved(*known, **spec).unknown_models == ()


def test_a_model_that_is_none_of_the_servers_is_told_with_what_was_meant_and_degrades_it() -> None:
    served = resolved("bot:prd", "selected", adapters=NAMED)
    assert served.unknown_models == (
        UnknownModel("web", "bot:prd", "; did you mean bot:prod?", False),
        UnknownModel("web", "selected", "", False),
    )
    outcome = compute(snapshot(server_pod("a"), served=served, reports={"a": heard(reported("bot"))}))
    message = (
        "spec.access.clients lets web request bot:prd, which is no base model, adapter or alias of this server; did "
        "you mean bot:prod? 1 more name is unknown"
    )
    assert (outcome.status["phase"], outcome.status["failure"]["message"]) == ("Degraded", message)
    assert "access.clients" in outcome.status["failure"]["remedies"][0]["fields"]
    assert condition(outcome.status, "AdaptersResolved")["message"] == message
    assert ("AdapterMissing", True) in events_of(outcome)


def test_where_a_selector_may_find_it_yet_it_is_but_a_remark() -> None:
    served = resolved("late", adapters=NAMED, **TEAM)
    reports = {"a": heard(reported("bot"), reported("selected"))}
    outcome = compute(snapshot(server_pod("a"), served=served, reports=reports))
    resolved_now = condition(outcome.status, "AdaptersResolved")
    assert (resolved_now["status"], resolved_now["reason"]) == ("True", "ModelsMissing")
    assert resolved_now["message"] == (
        "spec.access.clients lets web request late, which is not a model of this server now"
    )
    assert outcome.status["phase"] == "Ready"
    assert "failure" not in outcome.status
    assert "AdapterMissing" not in dict(events_of(outcome))


# A client that the Secret does not have


def test_a_client_that_the_secret_does_not_have_degrades_a_server_that_serves_until_it_is_mended() -> None:
    said = "spec.access.clients names wbe, which is no key of Secret keys (it has batch, web)"
    trouble = {"reason": "SecretNotFound", "message": said, "hint": "Correct the name."}
    found = snapshot(server_pod("a"), reports={"a": heard(reported("bot"), remark=trouble)})
    outcome = compute(found)
    assert outcome.status["phase"] == "Degraded"
    assert outcome.status["failure"] == {
        "reason": "SecretNotFound",
        "message": f"pod a: {said}",
        "hint": "Correct the name.",
        "remedies": [{"action": "Retry", "text": "Correct the name"}],
    }
    assert outcome.status["replicaStatuses"][0]["message"] == said
    assert condition(outcome.status, "Available")["status"] == "True"
    progressing = condition(outcome.status, "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "RolledOut"), "no rollout waits for it"
    assert ("SecretNotFound", True) in events_of(outcome)
    mended = compute(replace(found, reports={"uid-a": heard(reported("bot"))}), outcome.status)
    assert (mended.status["phase"], mended.status.get("failure")) == ("Ready", None)


def test_such_a_client_is_not_why_a_server_that_starts_does_not_answer_yet() -> None:
    said = "spec.access.clients names wbe, which is no key of Secret keys"
    starting = server_pod("a", ready=False)
    trouble = {"reason": "SecretNotFound", "message": said}
    reports = {"a": heard(reported("bot", "Loading"), engine_ready=False, remark=trouble)}
    outcome = compute(snapshot(starting, reports=reports, rollout=replace(deployment(1), updated=0)))
    reasons = [condition(outcome.status, type_)["reason"] for type_ in ("Available", "Progressing")]
    assert reasons == ["Starting", "RollingOut"]
    assert condition(outcome.status, "Progressing")["status"] == "True"
    assert outcome.status["phase"] == "Starting"
    assert outcome.status["failure"]["message"] == f"pod a: {said}"
    assert ("SecretNotFound", True) in events_of(outcome)


NO_ROOM: dict[str, Any] = {
    "ready": False,
    "containers": (),
    "unschedulable": "0/3 nodes are available",
    "phase": "Pending",
}


def test_such_a_client_is_shown_after_whatever_else_is_wrong() -> None:
    said = "spec.access.clients names wbe, which is no key of Secret keys (it has batch, web); did you mean web?"
    trouble = {"reason": "SecretNotFound", "message": said, "hint": "Correct the name."}
    found = replace(rollout("old", new=server_pod("new", **NO_ROOM)), reports={})
    before = compute(replace(found, reports={"uid-old-0": heard(reported("bot"), api_keys="old")})).status
    remarked = heard(reported("bot"), api_keys="old", remark=trouble)
    outcome = compute(replace(found, reports={"uid-old-0": remarked}), before)
    failure = outcome.status["failure"]
    assert failure["reason"] == before["failure"]["reason"] == "Unschedulable"
    assert failure["message"] == (
        f"no node fits pod new: 0/3 nodes are available; also SecretNotFound: pod old-0: {said}; {BEFORE} 1 "
        "replica still answers under the previous rules: with the keys of Secret old"
    )
    assert failure["remedies"][-1]["text"] == "Correct the name"
    assert "also" not in condition(outcome.status, "Progressing")["message"], "no rollout waits for it"
    alone = compute(replace(rollout("old"), reports={"uid-old-0": remarked}), outcome.status)
    assert "SecretNotFound" in [event.reason for event in alone.events], "its event comes once it is the failure"


def test_two_troubles_of_any_length_have_room_and_a_spec_that_is_not_valid_hides_none() -> None:
    trouble = {"reason": "SecretNotFound", "message": "names wbe " * 100, "hint": "Correct it. " * 80}
    reports = {"old-0": heard(reported("bot"), api_keys="old", remark=trouble)}
    new = server_pod("new", **{**NO_ROOM, "unschedulable": "no room " * 300})
    found = replace(rollout("old", new=new), reports={f"uid-{name}": each for name, each in reports.items()})
    failure = compute(found).status["failure"]
    assert all(len(failure[part].encode()) <= 1024 for part in ("message", "hint"))
    assert "no room no room" in failure["message"]
    assert "; also SecretNotFound: pod old-0: names wbe names wbe" in failure["message"]
    assert failure["message"].endswith("with the keys of Secret old")
    assert "Correct it." in failure["hint"]
    invalid = compute(replace(found, errors=(FieldError("spec.engine", "is wrong"),))).status["failure"]
    assert invalid["reason"] == "InvalidSpec"
    assert invalid["message"].startswith("spec.engine: is wrong; also SecretNotFound: pod old-0: names wbe")


# Rules that a rollout has not brought everywhere yet

NO_SECRET = ContainerView(
    "model",
    restarts=1,
    waiting_reason="CrashLoopBackOff",
    exit_code=64,
    exit_reason="Error",
    exit_message='{"failure": {"reason": "SecretNotFound", "message": "keys is missing"}}',
)


def rollout(*old: str, new: ServerPodView | None = None, access: dict[str, Any] | None = None) -> ServerSnapshot:
    """Return a server whose old replicas ask for the keys of these Secrets, beside a new one that is not ready."""
    pods = [server_pod(f"old-{number}") for number in range(len(old))]
    reports = {pod.name: heard(reported("bot"), api_keys=secret) for pod, secret in zip(pods, old, strict=True)}
    new = new or server_pod("new", ready=False, created="2026-01-02T11:30:00Z")
    under_way = replace(deployment(len(old)), replicas=len(old) + 1, updated=1)
    spec = server_spec(access=KEYS if access is None else access)
    return snapshot(*pods, new, reports=reports, rollout=under_way, spec=spec, replicas=len(old))


BEFORE = "until replicas with the new spec.access are ready,"


@pytest.mark.parametrize(
    ("old", "access", "words"),
    [
        ([NO_KEYS], KEYS, "1 replica still answers under the previous rules: without a key"),
        ([NO_KEYS] * 2, KEYS, "2 replicas still answer under the previous rules: without a key"),
        (["old", "keys"], KEYS, "1 replica still answers under the previous rules: with the keys of Secret old"),
        (["old"], {}, "1 replica still answers under the previous rules: with the keys of Secret old"),
    ],
)
def test_a_rollout_of_other_rules_says_how_many_replicas_answer_under_the_old(
    old: list[str], access: dict[str, Any], words: str
) -> None:
    status = compute(rollout(*old, access=access)).status
    assert condition(status, "Progressing")["message"] == f"replicas are created or replaced; {BEFORE} {words}"
    assert (status["phase"], status.get("failure")) == ("Updating", None)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ({"containers": (NO_SECRET,)}, "SecretNotFound"),
        ({"containers": (), "unschedulable": "0/3 nodes are available", "phase": "Pending"}, "Unschedulable"),
    ],
)
def test_a_rollout_that_is_stuck_says_why_and_that_the_old_rules_hold(new: dict[str, Any], reason: str) -> None:
    pod = server_pod("new", ready=False, created="2026-01-02T11:30:00Z", **new)
    outcome = compute(rollout(NO_KEYS, new=pod))
    failure = outcome.status["failure"]
    assert (outcome.status["phase"], failure["reason"]) == ("Degraded", reason)
    assert f"; {BEFORE} 1 replica still answers" in failure["message"]
    assert condition(outcome.status, "Progressing")["message"] == failure["message"]
    assert (reason, True) in events_of(outcome)


def test_the_old_rules_are_told_behind_a_message_of_any_length() -> None:
    pod = server_pod("new", ready=False, containers=(), unschedulable="no room " * 300, phase="Pending")
    message = compute(rollout(NO_KEYS, new=pod)).status["failure"]["message"]
    assert len(message.encode()) <= 1024
    assert message.endswith("under the previous rules: without a key")


@pytest.mark.parametrize("asks", ["keys", None], ids=["the same", "not known"])
def test_a_rollout_that_leaves_the_rules_alone_says_nothing_of_them(asks: str | None) -> None:
    found = rollout("keys")
    status = compute(replace(found, reports={"uid-old-0": heard(reported("bot"), api_keys=asks)})).status
    assert condition(status, "Progressing")["message"] == "replicas are created or replaced"


# Each Secret with the list of clients that stood beside it


def rules(secret: str, *clients: str) -> ClientRules:
    """Return the rule that these clients of a Secret may ask for the base only."""
    return ClientRules(api_keys=secret, clients={client: ["tiny"] for client in clients})


def access(secret: str, *clients: str) -> dict[str, Any]:
    """Return the same as the spec says it."""
    listed = [{"name": client, "models": ["tiny"]} for client in clients]
    return {"apiKeysSecretRef": {"name": secret}, **({"clients": listed} if listed else {})}


def desired_after(*specs: dict[str, Any], mounts: ApiKeyMounts = UNKNOWN_MOUNTS) -> Desired:
    """Return what replicas are told after these rules of access, one after the other."""
    desired = Desired()
    for spec in specs:
        desired = resolve(server_spec(access=spec), {}, desired, mounts).desired
    return desired


@pytest.mark.parametrize("now", [access("new", "frontend"), access("new"), {}], ids=["others", "no list", "no keys"])
def test_pods_of_another_secret_are_told_the_list_that_stood_beside_it(now: dict[str, Any]) -> None:
    desired = desired_after(access("old", "web"), now)
    assert desired.before == [rules("old", "web")]
    assert desired.clients_of("old") == {"web": ["tiny"]}
    assert desired.clients_of("new" if now else NO_KEYS) == ({"frontend": ["tiny"]} if "clients" in now else {})
    assert desired.clients_of("a third") is None, "nobody knows"
    assert resolve(server_spec(access=now), {}, desired).desired is desired, "and all is said"


def test_a_list_beside_the_same_secret_replaces_the_one_before_it_and_so_does_the_way_back() -> None:
    assert desired_after(access("old", "web"), access("old", "batch")).before == []
    back = desired_after(access("old", "web"), access("new", "web"), access("old", "batch"))
    assert (back.clients, back.before) == ({"batch": ["tiny"]}, [rules("new", "web")])
    later = desired_after(access("old", "web"), access("new", "eve"), access("new", "zoe"), access("last"))
    assert later.before == [rules("new", "zoe"), rules("old", "web")], "the newest come first"


def test_the_rules_of_before_go_with_the_last_pod_that_may_mount_their_secret() -> None:
    changes = (access("old", "web"), access("new", "web"))
    for mounts, retained in (
        (ApiKeyMounts(frozenset({"old"}), "old"), True),  # the Deployment is still the old one
        (ApiKeyMounts(frozenset({"new"}), None), True),  # a rollout is under way
        (ApiKeyMounts(frozenset({"new", "old"}), "new"), True),  # an old pod ends
        (ApiKeyMounts(frozenset({"new"}), "new"), False),
    ):
        assert bool(desired_after(*changes, mounts=mounts).before) is retained, mounts


def test_of_many_secrets_those_are_kept_that_pods_mount_and_then_the_newest() -> None:
    changes = [access(f"s{number:02}", "web") for number in range(20)]
    found = desired_after(*changes, mounts=ApiKeyMounts(frozenset({"s00", "s03"})))
    newest = [f"s{number:02}" for number in range(18, 18 - MAX_BEFORE + 2, -1)]
    assert [each.api_keys for each in found.before] == [*newest, "s03", "s00"]


def test_no_adapter_goes_for_rules_of_before() -> None:
    many = [{"name": f"n{number}", "uri": f"s3://adapters/{number}"} for number in range(512)]
    for names, retained in ((1000, ["old", "older"]), (6500, ["old"]), (7500, [])):
        wide = {"web": ["x" * 120] * names}
        before = Desired(api_keys="old", clients=wide, before=[ClientRules(api_keys="older", clients=wide)])
        served = resolve(server_spec(access=access("new"), adapters=many), {}, before)
        assert (len(served.desired.adapters), served.rejected) == (512, ())
        assert [each.api_keys for each in served.desired.before] == retained
