"""The chart where it serves some namespaces only: rights, policies, and the operator itself in that mode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from integration.chart.installed.test_helm_test import arguments, hooks
from tunery_api.inputs import OutputSpec
from tunery_api.kinds import Kind
from tunery_operator.manifests.trial import build_trial
from tunery_operator.observed.metadata import parse_owner
from tunery_operator.planning.job import output_location
from tunery_operator.planning.lorasweep import plan_trial
from tunery_operator.tools.helm_test import build_job
from tunery_search.history import Suggestion
from tunery_search.validation import parse_lorasweep

from kit.api_server import ApiServer
from kit.chart.installing import OPERATOR, TEAM, can, installation, kubeconfig_of_the_service_account
from kit.chart.policies import platform_of, refusal
from kit.chart.rendering import CHART, KUBE_VERSION, NAMESPACE, Helm, Rendered
from kit.chart.running import OURS, Operator, Release, running_operator
from kit.jobs import Job
from kit.kubectl import KubectlError, wait_for
from kit.operator.objects import adaptermerge, batchinference, lorajob, lorasweep

pytestmark = pytest.mark.slow

OTHER = "team-b"
UID = "12345678-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A cluster on which the chart serves one of two teams; what tenants may name is limited, too."""
    policy = (
        "tenantPolicy.enabled=true",
        "tenantPolicy.serviceAccounts={trainer}",
        r"tenantPolicy.outputPrefixes={s3://adapters/\{namespace\}/}",
    )
    folder = tmp_path_factory.mktemp("namespaced")
    with installation(folder, f"watchNamespaces={{{TEAM}}}", *policy) as kubectl:
        kubectl.run("create", "namespace", OTHER)
        yield kubectl


@pytest.fixture(scope="module")
def operator(served: ApiServer, helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    rendered = helm.render(f"watchNamespaces={{{TEAM}}}")
    with running_operator(served, rendered, tmp_path_factory.mktemp("operator")) as running:
        yield running


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("watch", "lorajobs.tunery.dev"), ("create", "jobs.batch"), ("list", "pods"),
        ("list", "events"), ("patch", "lorajobs.tunery.dev/status"),
    ],
)  # fmt: skip
def test_the_operator_has_its_rights_where_it_serves_and_nowhere_else(served: ApiServer, verb: str, what: str) -> None:
    assert can(served, OPERATOR, verb, what, TEAM)
    assert not can(served, OPERATOR, verb, what, OTHER)
    assert not can(served, OPERATOR, verb, what, "kube-system")
    assert not can(served, OPERATOR, verb, what, "")


def test_it_reviews_tokens_and_holds_its_lease(served: ApiServer, tmp_path: Path) -> None:
    assert can(served, OPERATOR, "create", "tokenreviews.authentication.k8s.io", "")
    own = served.using(kubeconfig_of_the_service_account(served, tmp_path))
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "tunery"}, "spec": {}}
    own.create(lease, NAMESPACE, dry_run=True)
    with pytest.raises(KubectlError, match="forbidden"):
        own.run("get", "lease", "other", "-n", NAMESPACE)


def test_the_operator_works_in_the_namespaces_that_it_serves(served: ApiServer, operator: Operator) -> None:
    jobs = {
        team: Job(served, lorajob("x", output={"uri": f"s3://adapters/{team}/x"}), team).apply()
        for team in (OTHER, TEAM)
    }
    wait_for("its preflight Job", lambda: jobs[TEAM].jobs("preflight"), timeout=30)
    wait_for("its status", lambda: jobs[TEAM].status.get("phase"), timeout=30)
    assert jobs[OTHER].jobs("preflight") == []
    assert jobs[OTHER].status == {"observedGeneration": -1}, "as the API server itself says of what nobody has seen"
    assert "forbidden" not in operator.log().lower()


def applied(kubectl: ApiServer, **spec: object) -> str | None:
    """Apply a LoRAJob as a dry run; return why it is refused, or None."""
    return refusal(kubectl, lorajob("y", **{"output": {"uri": f"s3://adapters/{TEAM}/y"}, **spec}))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        pytest.param({"output": {"uri": "s3://adapters/team-b/y"}}, "spec.output.uri", id="output-of-others"),
        pytest.param({"output": {"uri": "s3://adapters/team-about/y"}}, "spec.output.uri", id="prefix-of-a-name"),
        pytest.param({"scheduling": {"serviceAccountName": "admin"}}, "serviceAccountName", id="account"),
        pytest.param({"scheduling": {"priorityClassName": "system-node-critical"}}, "priorityClassName", id="priority"),
    ],
)
def test_tenants_name_what_the_platform_allows(served: ApiServer, spec: dict[str, object], field: str) -> None:
    wait_for("the policy", lambda: applied(served, output={"uri": "s3://elsewhere/y"}), timeout=60)
    assert field in (applied(served, **spec) or "")


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"output": {}}, id="the-platforms-output"),
        pytest.param({"scheduling": {"serviceAccountName": "trainer", "priorityClassName": "batch"}}, id="allowed"),
    ],
)
def test_and_nothing_else_is_refused(served: ApiServer, spec: dict[str, object]) -> None:
    assert applied(served, **spec) is None


def test_where_another_release_may_serve_nothing_is_judged(served: ApiServer) -> None:
    """Its operator makes the trials of its sweeps there, and its own policy says where they may go."""
    wait_for("the policy", lambda: applied(served, output={"uri": "s3://elsewhere/y"}), timeout=60)
    foreign = lorajob("y", output={"uri": "s3://elsewhere/y"})
    assert refusal(served, foreign | {"metadata": {"name": "y", "namespace": OTHER}}) is None


def searched(kubectl: ApiServer, uri: str | None, **scheduling: str) -> str | None:
    """Apply a LoRASweep as a dry run; return why it is refused, or None."""
    sweep = lorasweep("y", output={"uri": uri} if uri is not None else {})
    sweep["spec"]["template"]["scheduling"] = scheduling
    return refusal(kubectl, sweep)


MERGED = [{"uri": f"s3://others/{name}"} for name in "ab"]
PUBLISHING = {
    "LoRAJob": lorajob, "LoRASweep": lorasweep, "AdapterMerge": partial(adaptermerge, adapters=MERGED),
    "BatchInference": batchinference,
}  # fmt: skip
BELOW = "spec.output.uri: the platform allows a folder below s3://adapters/{namespace}/"
NOT_PLAIN = "uri must be like s3://bucket/folder"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        (f"s3://adapters/{TEAM}/y", None),
        (f"s3://adapters/{TEAM}/y/", None),
        (f"s3://adapters/{TEAM}/a..b/...", None),
        (None, None),
        # What is rejected would lie at s3://adapters/team-a-rejected, and trials at -trials: beside the prefix.
        (f"s3://adapters/{TEAM}", BELOW),
        (f"s3://adapters/{TEAM}/", BELOW),
        (f"s3://adapters/{TEAM}//", NOT_PLAIN),
        ("s3://adapters", BELOW),
        ("s3://adapters/team-b/y", BELOW),
        (f"s3://adapters/{TEAM}/../team-b/y", NOT_PLAIN),
        (f"s3://adapters/{TEAM}/y/..", NOT_PLAIN),
        (f"s3://adapters/{TEAM}/./y", NOT_PLAIN),
    ],
)
def test_what_is_published_lies_in_a_folder_below_what_the_platform_allows(
    served: ApiServer, uri: str | None, why: str | None
) -> None:
    wait_for("the policy", lambda: applied(served, output={"uri": "s3://elsewhere/y"}), timeout=60)
    for kind, made in PUBLISHING.items():
        told = refusal(served, made("y", output={"uri": uri} if uri is not None else {}))
        assert told is None if why is None else why in (told or ""), kind


def test_the_job_of_helm_test_is_taken_from_its_account_and_from_no_other(served: ApiServer, helm: Helm) -> None:
    """It names a bucket that there is not, or the platform's own for this: neither is a place of the tenants."""
    rendered = hooks(helm.render(f"watchNamespaces={{{TEAM}}}", tests=True))
    served.apply(*rendered.of("Role"), *rendered.of("RoleBinding"))
    wait_for("the policy", lambda: applied(served, output={"uri": "s3://elsewhere/y"}), timeout=60)
    asked = arguments(rendered)
    account = f"system:serviceaccount:{NAMESPACE}:{rendered.one('Pod')['spec']['serviceAccountName']}"

    for told in (asked, asked._replace(output_uri="s3://my-bucket/helm-test", account="elsewhere")):
        job = build_job(told)
        assert refusal(served, job, account) is None
        assert "tunery-tenants" in (refusal(served, job) or "")
        other = job | {"metadata": {"name": "other", "namespace": TEAM}}
        assert "tunery-tenants" in (refusal(served, other, account) or "")
    may = {verb: can(served, account, verb, "lorajobs.tunery.dev", TEAM) for verb in ("get", "delete", "patch")}
    assert may == {"get": False, "delete": False, "patch": False}, "of all of them; its own it may, by name"


def test_the_trials_of_a_sweep_run_as_the_platform_allows_it(served: ApiServer) -> None:
    wait_for("the policy", lambda: applied(served, output={"uri": "s3://elsewhere/y"}), timeout=60)
    place = f"s3://adapters/{TEAM}/y"
    assert searched(served, place, serviceAccountName="trainer") is None
    told = searched(served, place, serviceAccountName="admin")
    assert "spec.template.scheduling.serviceAccountName: the platform allows trainer" in (told or "")
    told = searched(served, place, priorityClassName="system-node-critical")
    assert "spec.template.scheduling.priorityClassName: the priority classes of the system" in (told or "")


def test_a_trial_lies_where_its_sweep_was_taken(served: ApiServer, helm: Helm, tmp_path: Path) -> None:
    """The platform's default output may be none of the places that tenants may name."""
    own = served.using(kubeconfig_of_the_service_account(served, tmp_path))
    of = parse_owner(Kind.LORASWEEP, {"metadata": {"namespace": TEAM, "name": "y", "uid": UID}})
    platform = platform_of(helm.render("defaultOutput.uri=s3://elsewhere/default"))
    body = build_trial(
        plan_trial(
            parse_lorasweep(lorasweep("y", output={})),
            of,
            output_location(OutputSpec(), of, platform.settings),
            (),
            Suggestion(number=0, origin="TPE", values={"training.learningRate": "0.001"}),
        )
    )
    assert body["spec"]["output"]["uri"] == f"s3://elsewhere/default/{TEAM}/y/{UID}-trials/{UID}/000"
    assert refusal(own, body) is None
    assert "the platform allows" in (refusal(served, body) or "")


def test_the_stand_by_goes_on_when_the_leader_stops(
    served: ApiServer, operator: Operator, helm: Helm, tmp_path: Path
) -> None:
    wait_for("the first to lead", operator.leads, timeout=30)
    rendered = helm.render(f"watchNamespaces={{{TEAM}}}")
    with running_operator(served, rendered, tmp_path, pod="tunery-1") as stand_by:
        assert not stand_by.leads()
        operator.process.terminate()
        wait_for("the stand-by to lead", stand_by.leads, timeout=30)
        lease = served.get("lease", "tunery", NAMESPACE)
        assert lease is not None
        assert lease["spec"]["holderIdentity"].startswith("tunery-1")
        job = Job(served, lorajob("later", output={"uri": f"s3://adapters/{TEAM}/later"}), TEAM).apply()
        wait_for("its preflight Job", lambda: job.jobs("preflight"), timeout=30)
        assert "forbidden" not in stand_by.log().lower()


CLUSTER_WIDE = {
    "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    "CustomResourceDefinition", "PriorityClass",
}  # fmt: skip


def test_two_releases_share_no_name_that_is_of_the_whole_cluster(helm: Helm) -> None:
    names = []
    for release, team in (("first", TEAM), ("second", OTHER)):
        settings = (f"watchNamespaces={{{team}}}", f"crds.install={str(release == 'first').lower()}")
        flags = [part for setting in (*settings, "tenantPolicy.enabled=true") for part in ("--set", setting)]
        text = helm.run("template", release, str(CHART), "-n", release, "--kube-version", KUBE_VERSION, *flags)
        found = Rendered.parse(text).documents
        names.append({(one["kind"], one["metadata"]["name"]) for one in found if one["kind"] in CLUSTER_WIDE})
        outside = {one["metadata"].get("namespace") for one in found if one["kind"] not in CLUSTER_WIDE}
        assert outside == {release, team}
    first, second = names
    assert first & second == set()
    assert {kind for kind, _ in second} == {kind for kind, _ in first} - {"CustomResourceDefinition"}


def test_two_releases_serve_their_own_teams_side_by_side(served: ApiServer, helm: Helm, tmp_path: Path) -> None:
    """Each has names, rights, policies, a Lease and a certificate of its own; the CRDs are the first one's."""
    second = Release("second-tunery", "second-system")
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    served.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": second.namespace, "labels": enforce}})
    settings = (f"watchNamespaces={{{OTHER}}}", "crds.install=false", "tenantPolicy.enabled=true")
    flags = [part for setting in settings for part in ("--set", setting)]
    served.program("helm", "install", "second", str(CHART), "-n", second.namespace, *flags)
    text = helm.run("template", "second", str(CHART), "-n", second.namespace, "--kube-version", KUBE_VERSION, *flags)
    rendered = {OURS: helm.render(f"watchNamespaces={{{TEAM}}}"), second: Rendered.parse(text)}
    folders = {release: tmp_path / release.name for release in rendered}
    for folder in folders.values():
        folder.mkdir()
    for namespace in (TEAM, OTHER):
        served.run("delete", "lorajobs", "--all", "-n", namespace, "--timeout=30s")
    with (
        running_operator(served, rendered[OURS], folders[OURS], "tunery-2") as first,
        running_operator(served, rendered[second], folders[second], "second-0", second) as other,
    ):
        for operator in (first, other):
            wait_for("each to lead, by a Lease of its own", operator.leads, timeout=30)
        places = {team: {"uri": f"s3://adapters/{team}/both"} for team in (TEAM, OTHER)}
        jobs = {team: Job(served, lorajob("both", output=place), team).apply() for team, place in places.items()}
        for team, job in jobs.items():
            (preflight,) = wait_for(f"the preflight Job in {team}", lambda job=job: job.jobs("preflight"), timeout=60)
            assert preflight["spec"]["template"]["spec"]["containers"][0]["image"].startswith("tunery-trainer")
            wait_for("its status", lambda job=job: job.status.get("phase"), timeout=30)
        for operator in (first, other):
            assert "forbidden" not in operator.log().lower()
    account = f"system:serviceaccount:{second.namespace}:{second.name}"
    assert can(served, account, "create", "jobs.batch", OTHER)
    assert not can(served, account, "create", "jobs.batch", TEAM)
    assert not can(served, OPERATOR, "create", "jobs.batch", OTHER)
    served.program("helm", "uninstall", "second", "-n", second.namespace)
    assert served.get("crd", "lorajobs.tunery.dev") is not None
    assert served.get("deployment", "tunery", NAMESPACE) is not None
