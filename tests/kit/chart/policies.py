"""The admission policies as the operator meets them: what it may send, and what it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunery_operator.plan.job import Platform
from tunery_operator.plan.types import Progress
from tunery_operator.settings import Settings

from kit.chart.installing import TEAM
from kit.chart.rendering import Rendered
from kit.kubectl import Kubectl, KubectlError


def platform_of(rendered: Rendered) -> Platform:
    """Return the platform as the environment makes it that the chart renders."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rendered.env().items():
            patch.setenv(name, value)
        settings = Settings()
    return Platform(settings, Progress(settings.progress_url, "PEM"))


def refusal(kubectl: Kubectl, body: dict[str, Any], *flags: str) -> str | None:
    """Send an object as a dry run, as kubectl does with flags; return why it is refused, or None where it is not."""
    namespace = body["metadata"].get("namespace", TEAM)
    try:
        kubectl.run("create", "--dry-run=server", "-n", namespace, "-f", "-", *flags, stdin=json.dumps(body))
    except KubectlError as error:
        return str(error)
    return None
