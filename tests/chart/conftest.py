"""The helm binary, the chart as it renders with its defaults, and an API server to install it on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .installing import first_install
from .rendering import Helm, Rendered
from cluster import binaries
from cluster.controlplane import ControlPlane
from kit.kubectl import Kubectl


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(str(binaries.helm() / "helm"))


@pytest.fixture(scope="session")
def rendered(helm: Helm) -> Rendered:
    return helm.render()


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """kubectl and helm against a control plane of this module's own: what the chart installs is cluster-wide."""
    plane = ControlPlane(tmp_path_factory.mktemp("chart-controlplane"))
    plane.start()
    yield kubectl_for(plane)
    plane.remove()


def kubectl_for(plane: ControlPlane) -> Kubectl:
    """Return kubectl and helm against a control plane, as its administrator."""
    path = os.pathsep.join([str(plane.bin), str(binaries.helm()), os.environ["PATH"]])
    return Kubectl(os.environ | {"KUBECONFIG": str(plane.kubeconfig), "PATH": path})


@pytest.fixture(scope="module")
def notes(kubectl: Kubectl) -> str:
    """Install the chart; return what Helm printed for people."""
    return first_install(kubectl, "defaultOutput.secretName=bucket-key")


@pytest.fixture(scope="module")
def installed(kubectl: Kubectl, notes: str) -> Kubectl:
    assert notes
    return kubectl
