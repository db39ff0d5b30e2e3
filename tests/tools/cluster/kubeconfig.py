"""Kubeconfig files that point to certificates on disk."""

from __future__ import annotations

from pathlib import Path

import yaml

from tools.cluster.certs import Authority, Pair


def write_kubeconfig(path: Path, server: str, authority: Authority, client: Pair) -> Path:
    """Write a kubeconfig with one context and return its path."""
    cluster = {"server": server, "certificate-authority": str(authority.pair.cert)}
    user = {"client-certificate": str(client.cert), "client-key": str(client.key)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tunery", "cluster": cluster}],
        "users": [{"name": "tunery", "user": user}],
        "contexts": [{"name": "tunery", "context": {"cluster": "tunery", "user": "tunery"}}],
        "current-context": "tunery",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
