"""The helm binary, and the chart as it renders with its defaults."""

from __future__ import annotations

import pytest

from cluster import binaries

from .rendering import Helm, Rendered


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(str(binaries.helm() / "helm"))


@pytest.fixture(scope="session")
def rendered(helm: Helm) -> Rendered:
    return helm.render()
