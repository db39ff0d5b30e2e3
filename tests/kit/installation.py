"""The product on a cluster, installed with Helm as the README says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kit.kubectl import Kubectl

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tunery"
NAMESPACE = "tunery-system"
RELEASE = "tunery"


def install(
    kubectl: Kubectl, images: dict[str, str], *settings: str, strings: Sequence[str] = (), keep: bool = False
) -> None:
    """Install or upgrade the chart and wait until the operator is ready.

    `images` holds references by the chart's values; `settings` are further `key=value` for --set, `strings` for
    --set-string. Settings of an earlier installation are forgotten, unless they are to be kept.
    """
    kubectl.apply(_namespace())
    flags = [part for value, image in images.items() for part in ("--set-string", f"{value}={image}")]
    flags += [part for setting in settings for part in ("--set", setting)]
    flags += [part for string in strings for part in ("--set-string", string)]
    kubectl.program(
        *("helm", "upgrade", "--install", RELEASE, str(CHART), "-n", NAMESPACE),
        *("--wait", "--timeout", "180s"),
        *(("--reset-then-reuse-values",) if keep else ()),
        *flags,
        timeout=240,
    )


def uninstall(kubectl: Kubectl) -> None:
    """Uninstall the release; the CRDs and what users made stay."""
    kubectl.program("helm", "uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout", "60s")


def _namespace() -> dict[str, object]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
