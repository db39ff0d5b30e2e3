"""A damaged adapter or base is recognised before or while it is read, and named; nothing counts as written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunery_api.adaptermerge import MergeMethod
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import LocalStore, StorePath
from tunery_trainer.merging.adapter_files import open_adapter
from tunery_trainer.merging.base_model import open_checkpoint
from tunery_trainer.merging.combine import combine
from tunery_trainer.merging.deltas import Options
from tunery_trainer.merging.files import LocalFiles, StoreFiles
from tunery_trainer.merging.into_base import merge_into_base
from tunery_trainer.merging.safetensors_stream import Layout, Writer

from kit.adapters import factors, write_adapter
from kit.tiny_models import Tiny, save_tiny

Q = "model.layers.0.self_attn.q_proj"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 8)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def huge_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def garbled_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:12] = b"\x00\x01\x02\x03"
    path.write_bytes(data)


def overlapping(path: Path) -> None:
    """Let the second tensor begin inside the first, in a header of the same length."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    last = max((n for n in header if n != "__metadata__"), key=lambda n: int(header[n]["data_offsets"][0]))
    header[last]["data_offsets"][0] -= 4
    path.write_bytes(data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(length) + data[8 + length :])


@pytest.mark.parametrize("damage", [cut, lengthen, empty, huge_header, garbled_header, overlapping])
def test_a_damaged_weights_file_is_corrupt(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = write_adapter(tmp_path / "tone", {Q: factors(4, 16, 16, 1)})
    damage(folder / WEIGHTS)
    with pytest.raises(TuneryError, match=r"tone/adapter_model\.safetensors") as caught:
        open_adapter(LocalFiles(folder))
    assert caught.value.reason == FailureReason.ADAPTER_CORRUPT


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file_is_a_missing_adapter(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "tone", {Q: factors(4, 16, 16, 1)})
    (folder / name).unlink()
    with pytest.raises(TuneryError, match=f"tone has no {name}") as caught:
        open_adapter(LocalFiles(folder))
    assert caught.value.reason == FailureReason.ADAPTER_MISSING


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_config_that_is_no_object_is_corrupt(tmp_path: Path, content: str) -> None:
    folder = write_adapter(tmp_path / "tone", {Q: factors(4, 16, 16, 1)})
    (folder / CONFIG).write_text(content)
    with pytest.raises(TuneryError, match=r"tone/adapter_config\.json is no JSON") as caught:
        open_adapter(LocalFiles(folder))
    assert caught.value.reason == FailureReason.ADAPTER_CORRUPT


def test_a_rank_that_the_config_does_not_promise_is_corrupt(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "tone", {Q: factors(4, 16, 16, 1)}, r=8)
    with pytest.raises(TuneryError, match=r"tone: .*q_proj has rank 4, adapter_config\.json says 8"):
        open_adapter(LocalFiles(folder))


def test_half_a_pair_of_factors_is_corrupt(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "tone", {Q: factors(4, 16, 16, 1)})
    weights = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in weights.items() if "lora_A" in k}, folder / WEIGHTS)
    with pytest.raises(TuneryError, match=r"q_proj has only one of lora_A and lora_B"):
        open_adapter(LocalFiles(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
@pytest.mark.parametrize("method", list(MergeMethod))
def test_nan_names_adapter_and_tensor(tmp_path: Path, method: MergeMethod, part: str, value: float) -> None:
    folder = write_adapter(tmp_path / "tone", {Q: factors(4, 16, 16, 1)})
    weights = load_file(folder / WEIGHTS)
    key = f"base_model.model.{Q}.{part}.weight"
    weights[key][1, 2] = value
    save_file(weights, folder / WEIGHTS)
    sound = write_adapter(tmp_path / "sound", {Q: factors(4, 16, 16, 2)})
    adapters = [open_adapter(LocalFiles(sound)), open_adapter(LocalFiles(folder))]
    with pytest.raises(TuneryError, match=f"tone: tensor {key} holds NaN or infinite values") as caught:
        combine(adapters, method, Options(), tmp_path / "out", torch.float32)
    assert caught.value.reason == FailureReason.ADAPTER_CORRUPT
    assert not (tmp_path / "out" / CONFIG).exists()


def test_nan_is_found_on_the_way_into_the_base(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_TIED)
    a, b = factors(4, 32, 32, 1)
    a[0, 0] = float("nan")
    folder = write_adapter(tmp_path / "tone", {Q: (a, b)})
    with pytest.raises(TuneryError, match=r"tone: tensor .*q_proj\.lora_A\.weight holds NaN"):
        merge_into_base(open_checkpoint(LocalFiles(base)), open_adapter(LocalFiles(folder)), tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def base_files(folder: Path) -> StoreFiles:
    return StoreFiles(
        StorePath(LocalStore(folder.parent, folder.parent.as_uri(), "spec.model.uri"), folder.name),
        "spec.model.uri",
        FailureReason.MODEL_NOT_FOUND,
    )


def index(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)


def shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda base: shard(base).unlink(), r"model\.safetensors\.index\.json lists model-0.*, missing"),
        (lambda base: cut(shard(base)), r"spec\.model\.uri/model-0.* should have"),
        (lambda base: (base / "config.json").unlink(), r"spec\.model\.uri has no config\.json"),
        (lambda base: save_file({"x": torch.ones(1)}, shard(base)), r"has no tensor .*, against the index"),
        (lambda base: index(base, "[]"), r"spec\.model\.uri/model\.safetensors\.index\.json is no JSON object"),
        (lambda base: index(base, "{}"), r"spec\.model\.uri/model\.safetensors\.index\.json has no weight_map"),
        (lambda base: index(base, '{"weight_map": ["a"]}'), r"index\.json has no weight_map"),
        (lambda base: index(base, '{"weight_map": {"a": 1}}'), r"index\.json has no weight_map"),
    ],
    ids=[
        "missing shard",
        "cut shard",
        "no config",
        "tensor missing",
        "index a list",
        "index empty",
        "map a list",
        "map of numbers",
    ],
)
def test_a_damaged_base_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    damage(base)
    with pytest.raises(TuneryError, match=message) as caught:
        open_checkpoint(base_files(base))
    assert caught.value.reason == FailureReason.MODEL_NOT_FOUND


def test_a_base_without_safetensors_or_with_packed_weights_is_unsupported(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_UNTIED)
    name = load_file(shard(base)).keys().__iter__().__next__()
    save_file({name: torch.ones(8, 1, dtype=torch.uint8)}, shard(base))
    index = {"weight_map": {name: shard(base).name}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TuneryError, match="is quantised already") as caught:
        open_checkpoint(base_files(base))
    assert caught.value.reason == FailureReason.MODEL_UNSUPPORTED
    (base / "model.safetensors.index.json").unlink()
    with pytest.raises(TuneryError, match=r"has no model\.safetensors and no model\.safetensors\.index\.json"):
        open_checkpoint(base_files(base))


def test_a_file_that_is_not_written_in_full_is_an_error(tmp_path: Path) -> None:
    layouts = [Layout(name, torch.float32, (4,)) for name in "ab"]
    with pytest.raises(ValueError, match="bytes were written"), Writer(tmp_path / "half", layouts) as writer:
        writer.write(torch.ones(4))


def test_what_the_writer_writes_is_read_by_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "b": torch.tensor(3, dtype=torch.int64),
        "c": torch.empty(0, 4),
        "d": torch.tensor([True, False, True]),
    }
    with Writer(tmp_path / "x", [Layout(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]) as writer:
        for tensor in tensors.values():
            writer.write(tensor)
    read = load_file(tmp_path / "x")
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
