"""A merge into a base in a real S3: shards stream through, and the local disk never holds more than one of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from tunery_api.manifest import Lineage, SourceRecord
from tunery_api.runspec import RunIdentity
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.published_folder import download_published
from tunery_common.storage.publisher import Publisher, Target, publish
from tunery_trainer.local import load_run_spec
from tunery_trainer.merging import run
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.tasks.merge import run_merge

from kit.adapters import logits, trained_adapter
from kit.s3 import credentials
from kit.tiny_models import Tiny, save_tiny
from tools.cluster.s3 import S3Server


@pytest.mark.slow
@pytest.mark.parametrize("small", [0, run.SMALL_MODEL], ids=["streamed", "compared by logits"])
def test_into_a_model_in_s3(
    tmp_path: Path,
    s3_server: S3Server,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small: int,
) -> None:
    for name, value in credentials(s3_server).values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run, "SMALL_MODEL", small)
    store, _ = open_store(f"s3://{bucket}", credentials(s3_server), "test")
    prefix = f"case-{small}"
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    for path in base.iterdir():
        store.upload_file(path, f"{prefix}/base/{path.name}")
    adapter = trained_adapter(base, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter", seed=1)
    identity = RunIdentity(kind="LoRAJob", namespace="ns", name="one", uid="one")
    lineage = Lineage(model=SourceRecord(uri=f"s3://{bucket}/{prefix}/base"))
    publish(adapter, Target(StorePath(store, f"{prefix}/adapter"), identity), lineage)

    held: list[int] = []
    add = Publisher.add

    def watch(self: Publisher, path: Path, name: str) -> object:
        held.append(len([file for file in (tmp_path / "work").rglob("model-*.safetensors") if file.is_file()]))
        return add(self, path, name)

    monkeypatch.setattr(Publisher, "add", watch)
    told = _told(monkeypatch)
    result = run_merge(load_run_spec(_manifest(tmp_path, f"s3://{bucket}/{prefix}"), tmp_path / "work", None))

    brought = [("downloading", 100), ("downloaded", None), ("phase", "Merging")] if small else [("downloaded", None)]
    begins = [("phase", "Starting"), ("downloading", None), ("downloaded", None), ("phase", "Merging")]
    in_between = [("downloading", percent) for _, percent in told[4:-3] if percent not in (None, 100)]
    assert [each for each in told if each not in in_between] == [
        *begins,
        *brought,
        *(("phase", phase) for phase in ("Uploading", "Succeeded")),
    ]
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Downloading model ")]
    assert [" 100 % (" in line for line in shown[-1:]] == ([True] if small else [])

    download_published(StorePath(store, f"{prefix}/out"), tmp_path / "out")
    assert float((logits(tmp_path / "out") - logits(base, adapter)).abs().max()) <= 1e-5
    assert result.verification is not None
    assert ("logits" in result.verification.method) is (small > 0)
    assert float(result.verification.max_error) <= 1e-5
    shards = len(list(base.glob("model-*.safetensors")))
    assert shards > 2
    assert max(held) == (2 * shards if small else 1)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in base.glob("model-*.safetensors")}


def _told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Return what the run tells of its phases and downloads, as it does."""
    told: list[tuple[str, Any]] = []

    def note(name: str) -> None:
        plain = getattr(ProgressReporter, name)

        def tell(self: ProgressReporter, *value: Any) -> None:
            told.append((name, *(value or [None])))
            plain(self, *value)

        monkeypatch.setattr(ProgressReporter, name, tell)

    for name in ("phase", "downloading", "downloaded"):
        note(name)
    return told


def _manifest(folder: Path, place: str) -> Path:
    spec = {"adapters": [{"uri": f"{place}/adapter"}], "into": "Model", "output": {"uri": f"{place}/out"}}
    document = {"apiVersion": "tunery.dev/v1alpha1", "kind": "AdapterMerge", "metadata": {"name": "m"}, "spec": spec}
    path = folder / "merge.yaml"
    path.write_text(json.dumps(document))
    return path
