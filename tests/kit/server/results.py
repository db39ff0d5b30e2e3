"""A result to fetch: the run.json of a fetch Job, and what is published and stored for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tunery_api.fetching import token_digest
from tunery_api.runspec import FetchRun, MountedSecret, RunSpec
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.credentials import ambient
from tunery_common.storage.publisher import Published, Target, publish

from kit.results import lineage, make_folder, run

TOKEN = "the token of this client"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
REPORT = b'{"rows": 90}'


def fetch_run(root: str, secret: MountedSecret | None = None, **fetch: Any) -> RunSpec:
    """Return the run.json of the object uid-1, whose result is at `<root>/out`."""
    return RunSpec(
        identity=run(),
        fetch=FetchRun(token_sha256=token_digest(TOKEN), **fetch),
        output_uri=f"{root}/out",
        report_uri=f"{root}/reports/uid-1",
        secrets={"output": secret} if secret is not None else {},
    )


def write_run(folder: Path, spec: RunSpec) -> Path:
    """Write run.json as a pod has it."""
    path = folder / "run.json"
    path.write_text(json.dumps(spec.to_json_dict()))
    return path


def write_secret(folder: Path, values: dict[str, str]) -> MountedSecret:
    """Write a Secret as the kubelet mounts it."""
    folder.mkdir()
    for key, value in values.items():
        (folder / key).write_text(value)
    return MountedSecret(name="s3", path=str(folder), field="spec.output.secretRef")


def publish_result(folder: Path, place: StorePath, uid: str = "uid-1", *more: str) -> Published:
    """Publish an adapter of 200,002 bytes with a README, a curve, a picture and the files of `more`."""
    made = make_folder(folder, extra=("README.md", "curve.jsonl", "training_curves.png", *more))
    return publish(made, Target(place, run(uid)), lineage())


def local(folder: Path) -> StorePath:
    """Return a folder as a place."""
    return open_store(folder.as_uri(), ambient(), "spec.output.uri")


def sha256(data: bytes) -> str:
    """Return the digest in hex."""
    return hashlib.sha256(data).hexdigest()
