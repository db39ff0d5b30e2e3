"""Files of weights that are none, or not complete: each is named, with what it is, and its remedy fixes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tunery_api.reasons import FailureReason
from tunery_api.remedies import Action
from tunery_common.errors import TuneryError
from tunery_common.inputs.location import Location
from tunery_common.inputs.weight_files import INDEX, SINGLE, check_weight_files, files_before_download, local_files
from tunery_trainer.model.load import load_config, load_tokenizer

from kit.s3 import credentials
from kit.tiny_models import Tiny, save_tiny
from tools.cluster.s3 import S3Server

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 364560\n".encode()
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("sharded"), Tiny.LLAMA_UNTIED)


@pytest.fixture
def folder(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "model")


def refused(folder: Path) -> TuneryError:
    with pytest.raises(TuneryError) as caught:
        check_weight_files(local_files(folder))
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
    assert caught.value.message.startswith("spec.model.uri: its weights cannot be loaded: ")
    return caught.value


def fix_of(error: TuneryError) -> str:
    (remedy,) = error.remedies
    assert remedy.action == Action.RETRY, "the file is fixed where it is"
    return remedy.text


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_whole_files_tell_the_types_of_their_tensors(folder: Path, llama: Path) -> None:
    types = check_weight_files(local_files(folder))
    assert list(types) == [path.name for path in shards(folder)]
    for path in shards(folder):
        assert types[path.name] == dict.fromkeys(load_file(path), "F32")
    assert list(check_weight_files(local_files(llama))) == [SINGLE]


def cut_in_header(content: bytes) -> bytes:
    return content[:200]


def header_of_a_list(content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    return content[:8] + b'{"a":[]}'.ljust(length) + content[8 + length :]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-7], "is cut off: it has "),
        (lambda content: content + b"\0", "is longer than its header says: it has "),
        (cut_in_header, "is cut off within its header, after 200 bytes"),
        (lambda _: b"", "is empty"),
        (lambda _: b"\0\0\0", "is no safetensors file"),
        (lambda content: b"\0" * len(content), "is no safetensors file"),
        (lambda _: b"<!DOCTYPE html>\n<html><body>Not Found</body></html>", "is an HTML page"),
        (lambda _: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML text"),
        (lambda _: b'{"error": "Repository not found"}', "is a JSON text"),
        (lambda _: b"PK\x03\x04" + b"\0" * 200, "is a ZIP archive, such as a pickle of PyTorch"),
        (header_of_a_list, "has a header that cannot be read"),
    ],
)
def test_a_damaged_file_is_named_and_fetched_again(folder: Path, damage: Damage, said: str) -> None:
    path = shards(folder)[1]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    found = refused(folder)
    assert f": {path.name} {said}" in found.message
    assert fix_of(found).startswith(f"Fetch {path.name} again ")
    path.write_bytes(whole)
    assert check_weight_files(local_files(folder))


@pytest.mark.parametrize("name", [INDEX, "model-00002"])
def test_a_pointer_of_git_lfs_is_told(folder: Path, name: str) -> None:
    path = next(path for path in sorted(folder.iterdir()) if path.name.startswith(name))
    path.write_bytes(POINTER)
    found = refused(folder)
    assert f": {path.name} is a pointer of Git LFS, not the file that it stands for" in found.message
    assert fix_of(found).startswith(f"Run git lfs pull where the model was cloned, and replace {path.name} ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("{", "is not JSON: "),
        ("[]", "is not a JSON object"),
        ("{}", "has no weight_map, which says in which file each tensor lies"),
        ({"metadata": {}}, "has no weight_map"),
        ({"metadata": {}, "weight_map": {}}, "has no weight_map"),
        ({"metadata": {}, "weight_map": ["model.norm.weight"]}, "has no weight_map"),
        ({"metadata": {}, "weight_map": {"model.norm.weight": 1}}, "does not say by a name in which file model.norm"),
    ],
)
def test_an_index_that_is_none_is_named(folder: Path, content: Any, said: str) -> None:
    (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))
    found = refused(folder)
    assert f": {INDEX} {said}" in found.message
    assert fix_of(found).startswith(f"Fetch {INDEX} again ")


def test_the_remedy_of_an_index_without_metadata_fixes_it(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))
    assert fix_of(refused(folder)) == f'Add "metadata": {{}} to {INDEX}'
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"], "metadata": {}}))
    assert check_weight_files(local_files(folder))


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..\\x", "pytorch_model.bin"]
)
def test_an_index_leads_to_no_file_elsewhere_and_to_no_pickle(folder: Path, name: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = name
    (folder / INDEX).write_text(json.dumps(index))
    found = refused(folder)
    assert f"{INDEX} lists {name!r}, which is not the name of a safetensors file beside it" in found.message
    assert fix_of(found).startswith(f"Move the safetensors files next to {INDEX}")


def test_shards_that_are_not_there_are_named(folder: Path) -> None:
    first, second, *_ = shards(folder)
    first.unlink()
    assert f"{INDEX} lists {first.name}, which is not there" in refused(folder).message
    second.unlink()
    found = refused(folder)
    assert f"{INDEX} lists {first.name} and 1 more, which is not there" in found.message
    assert fix_of(found).startswith(f"Add {first.name} and 1 more ")


def test_weights_that_nothing_leads_to_are_named(folder: Path, llama: Path) -> None:
    (folder / INDEX).unlink()
    found = refused(folder)
    assert f"there is neither {SINGLE} nor {INDEX}" in found.message
    assert shards(folder)[0].name in found.message
    shutil.copy(llama / SINGLE, folder / "weights.safetensors")
    (folder / "weights.safetensors").rename(folder / SINGLE)
    assert list(check_weight_files(local_files(folder))) == [SINGLE], "as the remedy says"


def test_a_file_that_config_json_names_is_the_one_that_is_looked_at(folder: Path, llama: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "own.safetensors"}))
    shutil.copy(llama / SINGLE, folder / "own.safetensors")
    shards(folder)[0].write_bytes(b"")
    assert list(check_weight_files(local_files(folder))) == ["own.safetensors"]


def test_a_file_that_may_not_be_read_is_no_fault_of_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    files = local_files(folder)
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(TuneryError, match="cannot be read: Permission denied") as caught:
        check_weight_files(files)
    assert caught.value.reason is FailureReason.STORAGE_ACCESS_DENIED


def test_in_a_bucket_only_headers_are_read(folder: Path, s3_server: S3Server, bucket: str) -> None:
    client = s3_server.client()
    for path in folder.iterdir():
        client.upload_file(str(path), bucket, f"base/{path.name}")
    place = Location(f"s3://{bucket}/base", credentials(s3_server))
    files = files_before_download(place, folder)
    assert files is not None
    read: list[int] = []

    def counted(name: str, start: int, length: int) -> bytes:
        found = files.read(name, start, length)
        read.append(len(found) if name.startswith("model-") else 0)
        return found

    types = check_weight_files(type(files)(files.sizes, counted))
    assert types == check_weight_files(local_files(folder))
    assert sum(read) < sum(path.stat().st_size for path in shards(folder)) / 4
    client.put_object(Bucket=bucket, Key=f"base/{shards(folder)[0].name}", Body=POINTER)
    later = files_before_download(place, folder)
    assert later is not None
    with pytest.raises(TuneryError, match="is a pointer of Git LFS"):
        check_weight_files(later)


def test_a_hub_has_compared_them_itself(folder: Path, s3_server: S3Server) -> None:
    assert files_before_download(Location("hf://owner/name", credentials(s3_server)), folder) is None


def test_a_file_without_metadata_is_whole(folder: Path) -> None:
    for path in shards(folder):
        save_file(load_file(path), path)
    assert check_weight_files(local_files(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("spoil", "said", "fix"),
    [
        (lambda _: POINTER, "is a pointer of Git LFS", "Run git lfs pull where the model was cloned, and replace {} "),
        (lambda whole: whole[: len(whole) // 2], "is not JSON: ", "Fetch {} again from where the model comes"),
        (lambda whole: b"\xef\xbb\xbf" + whole, "begins with a byte order mark", "Save {} as UTF-8 without it"),
    ],
    ids=["pointer", "cut-off", "byte-order-mark"],
)
def test_a_damaged_text_beside_the_weights_is_named(
    tiny_model: Path, tmp_path: Path, name: str, spoil: Callable[[bytes], bytes], said: str, fix: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / name).write_bytes(spoil((folder / name).read_bytes()))
    load = load_config if name == "config.json" else load_tokenizer
    with pytest.raises(TuneryError) as caught:
        load(folder)
    assert caught.value.reason == "ModelUnsupported"
    assert caught.value.message.startswith(f"spec.model.uri: {name} {said}")
    assert fix_of(caught.value).startswith(fix.format(name))
