"""The admission policies as the operator meets them: what it may send, and what it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunery_operator.planning.job import Platform, Progress

from kit.api_server import ApiServer
from kit.chart.installing import TEAM, kubeconfig_of_the_service_account
from kit.chart.rendering import Rendered
from kit.kubectl import KubectlError, wait_for
from kit.operator.objects import lorajob


def platform_of(rendered: Rendered) -> Platform:
    """Return the platform as the operator reads it from the chart's config.yaml."""
    settings = rendered.settings()
    return Platform(settings, Progress(settings.progress.url, "PEM"))


def refusal(api: ApiServer, body: dict[str, Any], user: str = "") -> str | None:
    """Send an object as a dry run, as `user` where one is given; return why it is refused, or None."""
    try:
        api.create(body, TEAM, dry_run=True, user=user)
    except KubectlError as error:
        return str(error)
    return None


def patch_refusal(api: ApiServer, kind: str, name: str, patch: dict[str, Any]) -> str | None:
    """Patch an object as a dry run; return why that is refused, or None."""
    try:
        api.patch(kind, name, patch, TEAM, dry_run=True)
    except KubectlError as error:
        return str(error)
    return None


def operator_of(installed: ApiServer, folder: Path) -> ApiServer:
    """Return the API server with the operator's own token, once the policies are in force."""
    api = installed.using(kubeconfig_of_the_service_account(installed, folder))
    # What the operator has the right to create, so that only a policy can refuse it.
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "foreign"}, "spec": {"template": pod}}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "foreign"}}
    foreign_job = lorajob("foreign")
    for foreign in (job, config, foreign_job):
        wait_for("the policies", lambda body=foreign: refusal(api, body) is not None, timeout=60)
    return api
