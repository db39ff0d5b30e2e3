"""What `helm test` makes: pods that restricted Pod Security takes, rights for no more, its programs' arguments."""

from __future__ import annotations

import json

import pytest

from integration.chart.test_roles import named, rights, used
from tunery_operator.client.permissions import TEST_PERMISSIONS
from tunery_operator.tools.helm_test import NAME, Options, parse_options

from kit.api_server import ApiServer
from kit.chart import everything
from kit.chart.rendering import NAMESPACE, Helm, HelmError, Rendered

BUCKET = ("test.outputUri=s3://bucket/sample", "test.outputSecret=s3")


def hooks(rendered: Rendered) -> Rendered:
    def of_the_test(document: everything.Json) -> bool:
        return document["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"

    return Rendered([document for document in rendered.documents if of_the_test(document)])


def arguments(rendered: Rendered) -> Options:
    (container,) = named(rendered.of("Pod"), "tunery-test")["spec"]["containers"]
    return parse_options(container["args"])


def test_without_a_bucket_it_is_one_pod_that_asks_what_is_installed(helm: Helm) -> None:
    rendered = hooks(helm.render(tests=True))
    assert {document["kind"] for document in rendered.documents} == {"ServiceAccount", "Role", "RoleBinding", "Pod"}
    pod, told = rendered.one("Pod")["spec"], arguments(rendered)
    assert (told.namespace, told.output_uri, told.secret) == (NAMESPACE, "", "")
    assert told.progress_url == helm.render().settings().progress.url
    assert told.ready_url == "http://tunery.tunery-system.svc:8080/readyz"
    # The authority, and not the key that is beside it.
    assert [item["key"] for item in pod["volumes"][0]["secret"]["items"]] == ["ca.crt"]


@pytest.mark.slow
def test_its_account_may_read_our_kinds_and_run_one_job(helm: Helm) -> None:
    rendered = hooks(helm.render("watchNamespaces={team-a,team-b}", tests=True))
    role, binding = rendered.one("Role"), rendered.one("RoleBinding")
    assert rights(role) == used(TEST_PERMISSIONS)
    # RBAC can name what is read and removed, and not what is listed or made.
    names = {verb: rule.get("resourceNames") for rule in role["rules"] for verb in rule["verbs"]}
    assert names == {"list": None, "create": None, "get": [NAME], "delete": [NAME]}
    assert (
        role["metadata"]["namespace"] == binding["metadata"]["namespace"] == arguments(rendered).namespace == "team-a"
    )
    account = rendered.one("Pod")["spec"]["serviceAccountName"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]


def test_with_a_bucket_a_pod_as_those_of_jobs_puts_the_model_there_first(helm: Helm) -> None:
    values = everything.VALUES | {"test.namespace": "team-a", "test.serviceAccountName": "trainer"}
    rendered = hooks(helm.render(*BUCKET, values=values, tests=True))
    sample, test = named(rendered.of("Pod"), "tunery-test-sample"), named(rendered.of("Pod"), "tunery-test")
    weights = [int(pod["metadata"]["annotations"]["helm.sh/hook-weight"]) for pod in (sample, test)]
    assert weights == sorted(weights)
    told = arguments(rendered)
    assert (told.namespace, told.output_uri, told.secret, told.account) == (
        "team-a", "s3://bucket/sample", "s3", "trainer",
    )  # fmt: skip
    (container,) = sample["spec"]["containers"]
    assert container["args"] == ["s3://bucket/sample", "s3"]
    assert sample["metadata"]["namespace"] == "team-a"
    assert sample["spec"]["serviceAccountName"] == "trainer"
    assert sample["spec"]["nodeSelector"] == {"pool": "cpu"}
    assert "runAsUser" not in sample["spec"]["securityContext"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert (variables["NO_PROXY"], variables["TUNERY_CA_BUNDLE"]) == (
        ".svc,.cluster.local,localhost,127.0.0.1", "/mnt/tunery/ca-bundle/ca.crt",
    )  # fmt: skip
    paths = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert paths == {"/tmp", "/var/run/secrets/tunery/output", "/mnt/tunery/ca-bundle"}


def test_a_place_that_is_no_bucket_is_refused(helm: Helm) -> None:
    with pytest.raises(HelmError, match="outputUri"):
        helm.render("test.outputUri=http://bucket")


@pytest.mark.slow
def test_restricted_pod_security_takes_its_pods(installed: ApiServer, helm: Helm) -> None:
    rendered = hooks(helm.render(*BUCKET, tests=True))
    installed.apply(*rendered.of("ServiceAccount"))
    for pod in rendered.of("Pod"):
        told = installed.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
        assert "created (server dry run)" in told
