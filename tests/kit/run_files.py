"""What the operator gives to a training container, in a folder of this machine: run.json, Secrets, inputs in S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kit.story import manifest
from tools.cluster.s3 import S3Server


class RunFiles:
    """Run files of one job, whose model and data lie in a folder and are uploaded from there."""

    def __init__(self, folder: Path, server: S3Server) -> None:
        self._folder = folder
        client = server.client()
        for path in (folder / "model").iterdir():
            client.upload_file(str(path), "models", f"{folder.name}/{path.name}")
        client.upload_file(str(folder / "data.jsonl"), "datasets", f"{folder.name}/data.jsonl")
        self._secret = folder / "secret"
        self._secret.mkdir()
        for name, value in server.environment().items():
            (self._secret / name).write_text(value)

    def write(
        self,
        secret_path: Path | None = None,
        bucket: str = "adapters",
        uid: str = "u-1",
        name: str = "run.json",
        own: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        """Write the run.json of a job of these `changes`, with what is the run's `own` put over it; return its path."""
        folder = self._folder
        output = f"s3://{bucket}/{folder.name}/out"
        spec: dict[str, Any] = manifest(
            folder,
            model={"uri": f"s3://models/{folder.name}", "secretRef": {"name": "s3"}},
            dataset={"uri": f"s3://datasets/{folder.name}/data.jsonl", "secretRef": {"name": "s3"}},
            output={"uri": output, "secretRef": {"name": "s3"}},
            **changes,
        )["spec"]
        mounted = {
            purpose: {"name": "s3", "path": str(secret_path or self._secret), "field": f"spec.{purpose}.secretRef"}
            for purpose in ("model", "dataset", "output")
        }
        content = {
            "identity": {"kind": "LoRAJob", "namespace": "team", "name": "tiny", "uid": uid},
            "loraJob": spec,
            "outputUri": output,
            "checkpointUri": f"s3://adapters/{folder.name}/checkpoints/{uid}",
            "secrets": mounted,
            "memoryBytes": 8 * 2**30,
            "workDir": str(folder / "work"),
        }
        path = folder / name
        path.write_text(json.dumps(content | (own or {})))
        return path
