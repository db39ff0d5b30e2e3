"""The policy of trials on a real API server: what the operator makes of a LoRASweep passes, and no other LoRAJob."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_operator.manifests.trial import build_trial, stop_change, suspend_change
from tunery_operator.observed.metadata import Owner, parse_owner
from tunery_operator.planning.job import Platform, output_location
from tunery_operator.planning.lorasweep import plan_trial
from tunery_search.history import Suggestion
from tunery_search.trials import FINAL_ORIGIN
from tunery_search.validation import parse_lorasweep

from kit.api_server import ApiServer
from kit.chart.installing import TEAM
from kit.chart.policies import patch_refusal, refusal
from kit.operator.objects import lorajob, lorasweep

Json = dict[str, Any]
Twist = Callable[[Json], object]
UID = "12345678-0000-0000-0000-000000000000"
QUEUE = "kueue.x-k8s.io/queue-name"


def owner(name: str = "support", uid: str = UID) -> Owner:
    labels, near = {QUEUE: "q"}, {"kueue.x-k8s.io/podset-preferred-topology": "cloud/rack"}
    metadata = {"namespace": TEAM, "name": name, "uid": uid, "labels": labels, "annotations": near}
    return parse_owner(Kind.LORASWEEP, {"metadata": metadata})


def trial(platform: Platform, of: Owner | None = None, number: int = 4, origin: str = "TPE", **spec: Any) -> Json:
    """Return a trial as the operator builds it."""
    of = of or owner()
    sweep = parse_lorasweep(lorasweep(of.key.name, **spec))
    place = output_location(sweep.output, of, platform.settings)
    suggestion = Suggestion(number=number, origin=origin, values={"training.learningRate": "0.001"})
    return build_trial(plan_trial(sweep, of, place, (), suggestion))


# A name of 59 characters has room for -004, one of 60 is cut, and of one of 64 the label, too. Dots and dashes at the
# cut go with what is cut off.
NAMES = {
    **{str(length): "a" * length for length in (1, 59, 60, 63, 64, 200)},
    "dashes": "a" * 44 + "-" * 9 + "b" * 30,
    "dots": "a" * 30 + ".b" * 20,
    "ends-like-a-final-one": "x-final",
    "number": "7",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize(("number", "origin"), [(0, "Initial"), (127, "TPE"), (256, FINAL_ORIGIN)])
def test_a_trial_of_any_name_passes(
    operator: ApiServer, platform: Platform, name: str, number: int, origin: str
) -> None:
    body = trial(platform, owner(name), number, origin, final={"training": {"epochs": 3}})
    assert refusal(operator, body) is None


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket/a/b", "s3://bucket/a/b/"])
def test_wherever_its_sweep_publishes(operator: ApiServer, platform: Platform, uri: str) -> None:
    assert refusal(operator, trial(platform, output={"uri": uri})) is None


def owner_of(body: Json) -> Json:
    reference: Json = body["metadata"]["ownerReferences"][0]
    return reference


def label(name: str, value: str | None) -> Twist:
    return lambda j: j["metadata"]["labels"].update({name: value})


def output(uri: str) -> Twist:
    return lambda j: j["spec"]["output"].update(uri=uri)


NOT_OURS = "bear the labels of a trial and belong to one LoRASweep"
NAMED = "named after its LoRASweep and its number"
PLACE = "publishes in its own folder"
SECOND = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": UID}
TWISTS: list[tuple[str, Twist, str]] = [
    ("no-label", lambda j: j["metadata"]["labels"].pop("app.kubernetes.io/managed-by"), NOT_OURS),
    ("no-labels", lambda j: j["metadata"].pop("labels"), NOT_OURS),
    ("no-number", lambda j: j["metadata"]["labels"].pop("tunery.dev/trial"), NOT_OURS),
    ("no-number-but-a-word", label("tunery.dev/trial", "abc"), NOT_OURS),
    ("no-owner", lambda j: j["metadata"].pop("ownerReferences"), NOT_OURS),
    ("owner-of-another-kind", lambda j: owner_of(j).update(kind="LoRAJob"), NOT_OURS),
    ("owner-of-our-kinds-name", lambda j: owner_of(j).update(apiVersion="v1"), NOT_OURS),
    ("no-controller", lambda j: owner_of(j).update(controller=False), NOT_OURS),
    ("another-owner-beside", lambda j: j["metadata"]["ownerReferences"].append(SECOND), NOT_OURS),
    ("another-name", lambda j: j["metadata"].update(name="theirs-004"), NAMED),
    ("a-name-that-begins-alike", lambda j: j["metadata"].update(name="support-x-004"), NAMED),
    ("another-number", lambda j: j["metadata"].update(name="support-005"), NAMED),
    ("a-hash-for-a-short-name", lambda j: j["metadata"].update(name="sup-0123456789-004"), NAMED),
    ("another-sweep", label("tunery.dev/sweep", "other"), NAMED),
    ("no-sweep", lambda j: j["metadata"]["labels"].pop("tunery.dev/sweep"), NAMED),
    ("the-sweeps-own-output", output("s3://adapters/support"), PLACE),
    ("output-of-another-sweep", output(f"s3://adapters/support-trials/{UID[::-1]}/004"), PLACE),
    ("output-of-another-trial", output(f"s3://adapters/support-trials/{UID}/003"), PLACE),
    ("output-of-no-trial", output(f"s3://adapters/contrials/{UID}/004"), PLACE),
    ("no-output", lambda j: j["spec"].pop("output"), PLACE),
    ("namespace", lambda j: j["metadata"].update(namespace="kube-system"), "admissionPolicy.deniedNamespaces"),
]  # fmt: skip


@pytest.mark.parametrize(("twist", "why"), [pytest.param(twist, why, id=name) for name, twist, why in TWISTS])
def test_a_twisted_trial_is_refused(operator: ApiServer, platform: Platform, twist: Twist, why: str) -> None:
    body = trial(platform)
    twist(body)
    assert why in (refusal(operator, body) or "")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a" * 49 + "-0123456789-004", id="one-character-too-many"),
        pytest.param("a" * 47 + "-0123456789-004", id="one-too-few"),
        pytest.param("b" * 48 + "-0123456789-004", id="of-another"),
        pytest.param("a" * 48 + "-0123456789-005", id="of-another-number"),
        pytest.param("a" * 48 + "-012345678x-004", id="no-hash"),
        pytest.param("a" * 58 + "-004", id="cut-without-a-hash"),
    ],
)
def test_a_long_name_is_cut_in_one_way_only(operator: ApiServer, platform: Platform, name: str) -> None:
    body = trial(platform, owner("a" * 60))
    assert len(body["metadata"]["name"]) == 63
    body["metadata"]["name"] = name
    assert NAMED in (refusal(operator, body) or "")


def test_what_others_add_to_a_trial_is_let_be(operator: ApiServer, platform: Platform) -> None:
    body = trial(platform)
    body["metadata"]["labels"]["cost-center"] = "42"
    body["metadata"]["annotations"]["example.com/seen"] = "yes"
    assert refusal(operator, body) is None


@pytest.fixture(scope="module")
def made(installed: ApiServer, operator: ApiServer, platform: Platform) -> str:
    """A trial of a sweep that is there, created by the operator."""
    installed.apply(lorasweep("real"), namespace=TEAM)
    body = installed.get("lorasweep", "real", TEAM)
    assert body is not None
    built = trial(platform, owner("real", body["metadata"]["uid"]))
    operator.create(built, TEAM)
    return str(built["metadata"]["name"])


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param(stop_change("in the worse half of 7"), id="stop"),
        pytest.param(suspend_change(True), id="hold"),
        pytest.param(suspend_change(False), id="let-go"),
        pytest.param({"metadata": {"labels": {"cost-center": "42"}}}, id="label-of-others"),
    ],
)
def test_the_operator_stops_and_suspends_its_trials(operator: ApiServer, made: str, patch: Json) -> None:
    assert patch_refusal(operator, "lorajob", made, patch) is None


MADE = "neither whose trial it is nor how it was made"
ONLY = "changes spec.stop and spec.suspend, and nothing else"


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        pytest.param({"metadata": {"ownerReferences": None}}, MADE, id="owner"),
        pytest.param({"metadata": {"finalizers": ["tunery.dev/keep"]}}, MADE, id="finalizer"),
        pytest.param({"metadata": {"labels": {"tunery.dev/sweep": "other"}}}, MADE, id="sweep"),
        pytest.param({"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}, MADE, id="managed-by"),
        pytest.param({"metadata": {"labels": {QUEUE: "another"}}}, MADE, id="queue"),
        pytest.param({"metadata": {"labels": {"kueue.x-k8s.io/priority-class": "high"}}}, MADE, id="priority"),
        pytest.param({"metadata": {"annotations": {"tunery.dev/retry": "1"}}}, MADE, id="retry"),
        pytest.param({"metadata": {"annotations": {"tunery.dev/origin": None}}}, MADE, id="origin"),
        pytest.param({"spec": {"retries": 9}}, ONLY, id="retries"),
        pytest.param({"spec": {"scheduling": {"serviceAccountName": "admin"}}}, ONLY, id="account"),
        pytest.param({"spec": {"onStop": None}}, ONLY, id="taken-away"),
        pytest.param({"spec": {"stop": "enough", "ttlSecondsAfterFinished": 0}}, ONLY, id="more-beside-stop"),
    ],
)
def test_the_operator_changes_nothing_else_of_its_trials(operator: ApiServer, made: str, patch: Json, why: str) -> None:
    assert why in (patch_refusal(operator, "lorajob", made, patch) or "")


def test_the_operator_lets_the_lorajobs_of_people_alone(installed: ApiServer, operator: ApiServer, made: str) -> None:
    installed.apply(lorajob("theirs"), namespace=TEAM)
    assert "only LoRAJobs that are trials" in (patch_refusal(operator, "lorajob", "theirs", stop_change("no")) or "")
    body = installed.get("lorajob", made, TEAM)
    assert body is not None
    taken = {"metadata": {"ownerReferences": body["metadata"]["ownerReferences"], "labels": body["metadata"]["labels"]}}
    assert "only LoRAJobs that are trials" in (patch_refusal(operator, "lorajob", "theirs", taken) or "")


def test_a_trial_whose_owner_was_taken_away_is_taken_back(installed: ApiServer, operator: ApiServer, made: str) -> None:
    body = installed.get("lorajob", made, TEAM)
    assert body is not None
    (reference,) = body["metadata"]["ownerReferences"]
    installed.patch("lorajob", made, {"metadata": {"ownerReferences": None}}, TEAM)

    def refused(patch: Json) -> str:
        return patch_refusal(operator, "lorajob", made, patch) or ""

    def owned(**change: str) -> Json:
        return {"metadata": {"ownerReferences": [{**reference, **change}]}}

    assert refused(owned()) == ""
    assert NOT_OURS in refused(stop_change("no")), "while it has no owner"
    assert ONLY in refused({**owned(), "spec": {"retries": 9}})
    assert NAMED in refused(owned(name="r"))
    assert PLACE in refused(owned(uid=UID))
    installed.patch("lorajob", made, owned(), TEAM)


def test_people_make_and_change_lorajobs_as_ever(installed: ApiServer, operator: ApiServer, made: str) -> None:
    del operator
    assert refusal(installed, lorajob("mine")) is None
    assert patch_refusal(installed, "lorajob", made, {"spec": {"retries": 9}}) is None
