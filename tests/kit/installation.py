"""The product on a cluster, installed with Helm as the README says."""

from __future__ import annotations

from pathlib import Path

from kit.kubectl import Kubectl

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tunery"
NAMESPACE = "tunery-system"
RELEASE = "tunery"


def install(kubectl: Kubectl, images: dict[str, str], *settings: str) -> None:
    """Install or upgrade the chart and wait until the operator is ready.

    `images` holds `operator` and `trainer`: repository:tag; `settings` are further `key=value` for --set. Settings of
    an earlier installation are forgotten.
    """
    kubectl.apply(_namespace())
    chosen = [*_image_values(images), *settings]
    flags = [part for setting in chosen for part in ("--set", setting)]
    kubectl.program(
        *("helm", "upgrade", "--install", RELEASE, str(CHART), "-n", NAMESPACE),
        *("--wait", "--timeout", "180s"),
        *flags,
        timeout=240,
    )


def uninstall(kubectl: Kubectl) -> None:
    """Uninstall the release; the CRDs and what users made stay."""
    kubectl.program("helm", "uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout", "60s")


def _namespace() -> dict[str, object]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def _image_values(images: dict[str, str]) -> list[str]:
    values = []
    for name, reference in images.items():
        repository, _, tag = reference.rpartition(":")
        values += [f"{name}.image.repository={repository}", f"{name}.image.tag={tag}"]
    return values
