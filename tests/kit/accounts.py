"""Acting as a ServiceAccount, by its token, as pods do: the API server checks a certificate's signatures each time."""

from __future__ import annotations

from pathlib import Path

import yaml

from kit.kubectl import Kubectl


def kubeconfig_of(kubectl: Kubectl, namespace: str, account: str, folder: Path) -> Path:
    """Write a kubeconfig with the token of a ServiceAccount, and return where."""
    config = yaml.safe_load(Path(kubectl.environment["KUBECONFIG"]).read_text())
    token = kubectl.run("create", "token", account, "-n", namespace, "--duration=12h").strip()
    for user in config["users"]:
        user["user"] = {"token": token}
    path = folder / f"{account}.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path
