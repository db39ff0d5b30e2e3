"""Which files make up a split, what is refused, and what the digest says."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tunery_api.reasons import ExitCode, FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.data.faults import reading
from tunery_trainer.data.read import read_records
from tunery_trainer.data.sources import content_digest, find_sources


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


@pytest.mark.parametrize(
    ("files", "pattern", "split", "chosen"),
    [
        pytest.param(["train.jsonl", "test.jsonl"], "", "train", ["train.jsonl"], id="file-of-the-split"),
        pytest.param(["train.jsonl", "test.jsonl"], "", "test", ["test.jsonl"], id="other-split"),
        pytest.param(
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-0.parquet"],
            "",
            "train",
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            id="hub-shards",
        ),
        pytest.param(["data/train2024.csv", "data/x.csv"], "", "train", ["data/train2024.csv"], id="data-prefix"),
        pytest.param(["train/a.jsonl", "dev/a.jsonl"], "", "train", ["train/a.jsonl"], id="folder-of-the-split"),
        pytest.param(["b.jsonl", "a.csv.gz", "README.md"], "", "train", ["a.csv.gz", "b.jsonl"], id="all-are-train"),
        pytest.param(["a.jsonl", "validation.jsonl"], "", "train", ["a.jsonl"], id="never-another-split"),
        pytest.param(["test.jsonl", "a.jsonl"], "test.jsonl", "train", ["test.jsonl"], id="named-file"),
        pytest.param(
            ["x/1.jsonl", "x/2.jsonl", "y/3.jsonl"], "x/*.jsonl", "train", ["x/1.jsonl", "x/2.jsonl"], id="glob"
        ),
        pytest.param(["x/1.jsonl", "y/3.jsonl"], "**/*.jsonl", "train", ["x/1.jsonl", "y/3.jsonl"], id="deep-glob"),
        pytest.param(["..data/a.jsonl", "a.jsonl"], "", "train", ["a.jsonl"], id="hidden-copy-of-a-configmap"),
        pytest.param(["a.JSONL", "dataset_infos.json"], "", "train", ["a.JSONL"], id="metadata-is-no-data"),
    ],
)
def test_chosen_files(tmp_path: Path, files: list[str], pattern: str, split: str, chosen: list[str]) -> None:
    root = touch(tmp_path, *files)
    assert [source.name for source in find_sources(root, pattern, split)] == chosen


def test_the_root_may_be_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "rows.json.zst")
    (source,) = find_sources(tmp_path / "rows.json.zst", "", "train")
    assert (source.name, source.suffix) == ("rows.json.zst", ".json.zst")


@pytest.mark.parametrize(
    ("pattern", "split", "reason", "said"),
    [
        pytest.param(
            "", "dev", FailureReason.DATASET_NOT_FOUND, "no file of split 'dev'; there are: a.jsonl", id="split"
        ),
        pytest.param("b.jsonl", "train", FailureReason.DATASET_NOT_FOUND, "there are: a.jsonl, notes.txt", id="file"),
        pytest.param("*.csv", "train", FailureReason.DATASET_NOT_FOUND, "there are: a.jsonl, notes.txt", id="glob"),
        pytest.param("../other", "train", FailureReason.INVALID_SPEC, "without '..'", id="parent"),
        pytest.param("x/../../*.jsonl", "train", FailureReason.INVALID_SPEC, "without '..'", id="hidden-parent"),
        pytest.param("/etc/*.json", "train", FailureReason.INVALID_SPEC, "below its root", id="absolute"),
    ],
)
def test_refused(tmp_path: Path, pattern: str, split: str, reason: FailureReason, said: str) -> None:
    root = touch(tmp_path, "a.jsonl", "notes.txt")
    with pytest.raises(TuneryError) as caught:
        find_sources(root, pattern, split)
    assert caught.value.reason is reason
    assert said in caught.value.message


def test_a_link_out_of_the_root_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "secret.jsonl", "root/blobs.d/one.jsonl")
    root = tmp_path / "root"
    (root / "inside.jsonl").symlink_to(root / "blobs.d" / "one.jsonl")
    assert [source.name for source in find_sources(root, "inside.jsonl", "train")] == ["inside.jsonl"]
    (root / "outside.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(TuneryError, match=r"outside\.jsonl: is a link that leads out") as caught:
        find_sources(root, "", "train")
    assert caught.value.remedies[0].text.startswith("Replace the link by the file itself, as cp -L does")


def test_a_link_that_is_named_itself_is_read_by_its_own_name_wherever_it_leads(tmp_path: Path) -> None:
    """Those of the hub's cache lead out of their folder, to files whose names have no ending."""
    touch(tmp_path, "blobs/abc", "snapshots/x/test.jsonl")
    link = tmp_path / "snapshots" / "x" / "train.jsonl"
    link.symlink_to("../../blobs/abc")
    (source,) = find_sources(link, "", "train")
    assert (source.name, source.suffix, source.path.read_text()) == ("train.jsonl", ".jsonl", "blobs/abc")
    assert refused(tmp_path / "blobs" / "abc").message.startswith(
        "spec.dataset.uri: abc: has not the name of a data file (read are .jsonl, "
    )


def refused(root: Path, pattern: str = "") -> TuneryError:
    """Return the failure of a data set that is refused."""
    with pytest.raises(TuneryError) as caught:
        find_sources(root, pattern, "train")
    return caught.value


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        *(("dead.jsonl", pattern) for pattern in ("", "*.jsonl", "dead.jsonl")),
        *(("shards", pattern) for pattern in ("", "*", "**/*.jsonl", "*/x.jsonl", "shards/x.jsonl")),
        ("v1.5", ""),
    ],
)
def test_a_link_to_nothing_is_not_passed_over(tmp_path: Path, name: str, pattern: str) -> None:
    """Also where it may be meant for a folder; without its rows it would be another data set."""
    root = touch(tmp_path, "a.jsonl")
    (root / name).symlink_to("gone")
    found = refused(root, pattern)
    assert found.reason is FailureReason.DATASET_NOT_FOUND
    assert found.message == f"spec.dataset.uri: {name}: is a link to gone, where nothing is"
    assert [each.text for each in found.remedies] == ["Create what it points to, or remove the link"]
    (root / name).unlink()
    assert [source.name for source in find_sources(root, "*", "train")] == ["a.jsonl"]


@pytest.mark.parametrize("name", ["dead.jsonl", "shards"])
def test_a_link_to_itself_is_told_as_one(tmp_path: Path, name: str) -> None:
    root = touch(tmp_path, "a.jsonl")
    (root / name).symlink_to("z")
    (root / "z").symlink_to(name)
    found = refused(root)
    assert found.reason is FailureReason.DATASET_NOT_FOUND
    assert f"spec.dataset.uri: {name}: is a link to z, which leads back to itself" in found.message
    assert found.remedies[0].text == "Replace the link by the file or the folder itself, or remove it"


def test_links_to_what_is_no_data_are_passed_over(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.jsonl", "x/b.csv")
    for name in ("notes.txt", "README.md", "dataset.yaml", "card.yml", "settings.toml"):
        (root / name).symlink_to(f"gone-{name}")
    (root / ".hidden.jsonl").symlink_to("gone.jsonl")
    (root / ".hidden").symlink_to("gone")
    assert [source.name for source in find_sources(root, "", "train")] == ["a.jsonl", "x/b.csv"]
    (root / "x" / "dead.jsonl").symlink_to("gone")
    assert [source.name for source in find_sources(root, "**/*.csv", "train")] == ["x/b.csv"]


@pytest.mark.parametrize("name", ["sub", "sub.jsonl", "deep/sub"])
@pytest.mark.parametrize("pattern", ["", "**/*.jsonl", "**", "NAME/x.jsonl"])
def test_a_linked_folder_that_leads_out_is_refused_as_a_linked_file_is(tmp_path: Path, name: str, pattern: str) -> None:
    touch(tmp_path, "outside/x.jsonl", "root/a.jsonl", "root/deep/b.jsonl")
    link = tmp_path / "root" / name
    link.symlink_to(tmp_path / "outside")
    found = refused(tmp_path / "root", pattern.replace("NAME", name))
    assert found.reason is FailureReason.DATASET_INVALID
    assert found.message == f"spec.dataset.uri: {name}: is a linked folder that leads out of the data set's folder"
    assert "as cp -rL does" in found.remedies[0].text
    subprocess.run(["cp", "-rL", link, link.with_name("copy")], check=True)
    link.unlink()
    link.with_name("copy").rename(link)
    assert f"{name}/x.jsonl" in [source.name for source in find_sources(tmp_path / "root", "", "train")]


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("", ["a.jsonl", "inner/b.jsonl", "train/b.jsonl"]),
        ("**/b.jsonl", ["inner/b.jsonl", "train/b.jsonl"]),
        ("train", ["train/b.jsonl"]),
        ("t*/*.jsonl", ["train/b.jsonl"]),
        ("t*", ["train/b.jsonl"]),
    ],
)
def test_a_linked_folder_within_is_read_by_its_name(tmp_path: Path, pattern: str, chosen: list[str]) -> None:
    root = touch(tmp_path, "a.jsonl", "inner/b.jsonl")
    (root / "train").symlink_to("inner")
    assert [source.name for source in find_sources(root, pattern, None)] == chosen


def test_what_the_kubelet_mounts_is_read_once(tmp_path: Path) -> None:
    """Of a key whose path has a folder, the kubelet links that folder: `shards -> ..data/shards`."""
    root = touch(tmp_path, "..2026_01/a.jsonl", "..2026_01/shards/b.jsonl")
    (root / "..data").symlink_to("..2026_01")
    (root / "a.jsonl").symlink_to("..data/a.jsonl")
    (root / "shards").symlink_to("..data/shards")
    for pattern in ("", "**/*.jsonl"):
        assert [source.name for source in find_sources(root, pattern, "train")] == ["a.jsonl", "shards/b.jsonl"]


@pytest.mark.parametrize(("link", "target"), [("sub", "."), ("deep/sub", ".."), ("deep/sub", "."), ("x/in", "../y")])
def test_a_link_to_a_folder_that_it_lies_in_is_refused(tmp_path: Path, link: str, target: str) -> None:
    root = touch(tmp_path, "a.jsonl", "deep/b.jsonl", "x/c.jsonl", "y/d.jsonl")
    (root / link).symlink_to(target)
    if target == "../y":  # round by way of each other
        (root / "y" / "in").symlink_to("../x")
        link = "x/in/in"
    found = refused(root)
    assert found.reason is FailureReason.DATASET_INVALID
    assert found.message == f"spec.dataset.uri: {link}: is a link to a folder that it lies in itself"
    (root / link).unlink()
    assert len(find_sources(root, "", "train")) >= 4


def test_what_has_a_data_files_name_and_is_none_is_told(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.jsonl", "parts.jsonl/part-0.jsonl", "empty.jsonl/_SUCCESS")
    assert "empty.jsonl: is a folder, and no data file is in it" in refused(root).message
    shutil.rmtree(root / "empty.jsonl")
    os.mkfifo(root / "pipe.jsonl")
    for found in (refused(root), refused(root, "pipe.jsonl"), refused(root / "pipe.jsonl")):
        assert found.reason is FailureReason.DATASET_INVALID
        assert "pipe.jsonl: is a pipe, a socket or a device, and no file" in found.message
    (root / "pipe.jsonl").unlink()
    assert [source.name for source in find_sources(root, "", "train")] == ["a.jsonl", "parts.jsonl/part-0.jsonl"]


def test_a_name_that_cannot_be_written_down_is_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"b\xff.jsonl")).write_text("x")
    assert r"b\xff.jsonl: has a name that is not valid UTF-8" in refused(tmp_path).message


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EISDIR, FailureReason.DATASET_NOT_FOUND),
        (errno.ENOENT, FailureReason.DATASET_NOT_FOUND),
        (errno.ELOOP, FailureReason.DATASET_NOT_FOUND),
        (errno.EACCES, FailureReason.STORAGE_ACCESS_DENIED),
        (errno.EIO, FailureReason.STORAGE_UNAVAILABLE),
        (errno.ESTALE, FailureReason.STORAGE_UNAVAILABLE),
    ],
)
def test_what_the_kernel_says_of_a_file_is_told_with_its_name(number: int, reason: FailureReason) -> None:
    with pytest.raises(TuneryError) as caught, reading("x/a.jsonl"):
        raise OSError(number, os.strerror(number))
    assert caught.value.reason is reason
    assert caught.value.message == f"spec.dataset.uri: x/a.jsonl: cannot be read: {os.strerror(number)}"


def test_memory_and_disk_that_run_out_are_no_fault_of_the_file() -> None:
    for number in (errno.ENOMEM, errno.ENOSPC):
        with pytest.raises(OSError, match=os.strerror(number)), reading("a.jsonl"):
            raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("become", [Path.mkdir, lambda path: path.symlink_to(path.name), lambda path: None])
def test_a_file_that_is_gone_once_it_was_listed_ends_the_job_for_good(
    tmp_path: Path, become: Callable[[Path], None]
) -> None:
    sources = find_sources(touch(tmp_path, "a.jsonl"), "", "train")
    sources[0].path.unlink()
    become(sources[0].path)
    for read in (content_digest, lambda files: list(read_records(files))):
        with pytest.raises(TuneryError, match=r"a\.jsonl: cannot be read: ") as caught:
            read(sources)
        assert caught.value.reason is FailureReason.DATASET_NOT_FOUND
        assert caught.value.exit_code is ExitCode.USER_ERROR


def test_an_empty_root_says_so(tmp_path: Path) -> None:
    with pytest.raises(TuneryError, match="there are: nothing"):
        find_sources(tmp_path / "missing", "", "train")


def test_hidden_entries_are_not_told_of(tmp_path: Path) -> None:
    touch(tmp_path, "..data/a.txt", ".git/x", "a.txt")
    with pytest.raises(TuneryError, match=r"there are: a\.txt$"):
        find_sources(tmp_path, "", "train")


def test_the_digest_is_what_sha256sum_prints(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.jsonl", "b.jsonl")
    one, two = (hashlib.sha256(name.encode()).hexdigest() for name in ("a.jsonl", "b.jsonl"))
    assert content_digest(find_sources(root, "a.jsonl", "train")) == one
    listing = f"{one}  a.jsonl\n{two}  b.jsonl\n".encode()
    assert content_digest(find_sources(root, "", "train")) == hashlib.sha256(listing).hexdigest()
