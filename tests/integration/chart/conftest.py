"""The helm binary, and the chart as it renders with its defaults."""

from __future__ import annotations

import pytest

from tunery_operator.planning.job import Platform

from kit.chart.policies import platform_of
from kit.chart.rendering import Helm, Rendered
from tools.cluster import binaries


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(str(binaries.kubernetes() / "helm"))


@pytest.fixture(scope="session")
def rendered(helm: Helm) -> Rendered:
    return helm.render()


@pytest.fixture(scope="module")
def platform(rendered: Rendered) -> Platform:
    """The platform as the chart's own environment makes it."""
    return platform_of(rendered)
