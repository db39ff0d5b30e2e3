"""Small results to publish, and the runs that publish them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tunery_api.manifest import FileRecord, Lineage, SourceRecord
from tunery_api.runspec import RunIdentity
from tunery_common.storage.claims import claim_bytes


def run(uid: str = "uid-1", name: str = "support-bot") -> RunIdentity:
    return RunIdentity(kind="LoRAJob", namespace="team-a", name=name, uid=uid)


def claim(of: RunIdentity, files: dict[str, bytes] | None = None, renewed: float | None = None) -> bytes:
    """Return the claim of an attempt of a run on files of these contents."""
    records = {
        name: FileRecord(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for name, content in (files or {}).items()
    }
    return claim_bytes(of, f"an attempt of {of.uid}", records, renewed)


def lineage() -> Lineage:
    return Lineage(
        model=SourceRecord(uri="hf://owner/model", revision="a" * 40),
        dataset=SourceRecord(uri="s3://datasets/x.jsonl", digest="b" * 64),
        served_name="owner/model",
        method="LoRA",
        rank=8,
        hyperparameters={"training.learningRate": "2e-4", "lora.rank": 8},
        seed=42,
        versions={"peft": "0.21.2"},
        device="cpu",
        metrics={"evalLoss": 1.25, "loss": float("nan")},
    )


def make_folder(folder: Path, content: str = "x", *, extra: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(f'{{"c": "{content}"}}')
    (folder / "adapter_model.safetensors").write_bytes(content.encode() * 200_000)
    for name in extra:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder
