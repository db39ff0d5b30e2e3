"""Which files make up a split, what is refused, and what the digest says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tunery_api.reasons import FailureReason
from tunery_trainer.data.sources import content_digest, find_sources
from tunery_trainer.errors import TrainerError


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
    with pytest.raises(TrainerError) as caught:
        find_sources(root, pattern, split)
    assert caught.value.reason is reason
    assert said in caught.value.message


def test_a_link_out_of_the_root_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "secret.jsonl", "root/blobs.d/one.jsonl")
    root = tmp_path / "root"
    (root / "inside.jsonl").symlink_to(root / "blobs.d" / "one.jsonl")
    assert [source.name for source in find_sources(root, "inside.jsonl", "train")] == ["inside.jsonl"]
    (root / "outside.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(TrainerError, match=r"outside\.jsonl: is a link that leads out") as caught:
        find_sources(root, "", "train")
    assert caught.value.hint == (
        "Put the file itself in the place of the link, as cp -L does; or name the file that it points to."
    )


@pytest.mark.parametrize(("pattern", "target"), [("", "gone.jsonl"), ("*.jsonl", "dead.jsonl"), ("dead.jsonl", "x")])
def test_a_link_to_nothing_is_not_passed_over(tmp_path: Path, pattern: str, target: str) -> None:
    """Also where it points to itself; without its rows it would be another data set."""
    root = touch(tmp_path, "a.jsonl")
    (root / "dead.jsonl").symlink_to(target)
    with pytest.raises(TrainerError, match=rf"dead\.jsonl: is a link to {target}, where nothing is") as caught:
        find_sources(root, pattern, "train")
    assert caught.value.reason is FailureReason.DATASET_NOT_FOUND
    assert caught.value.hint == "Put the file there, or remove the link."


def test_links_to_what_is_no_data_are_passed_over(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.jsonl")
    (root / "notes.txt").symlink_to("gone.txt")
    (root / ".hidden.jsonl").symlink_to("gone.jsonl")
    assert [source.name for source in find_sources(root, "", "train")] == ["a.jsonl"]


def test_an_empty_root_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="there are: nothing"):
        find_sources(tmp_path / "missing", "", "train")


def test_hidden_entries_are_not_told_of(tmp_path: Path) -> None:
    touch(tmp_path, "..data/a.txt", ".git/x", "a.txt")
    with pytest.raises(TrainerError, match=r"there are: a\.txt$"):
        find_sources(tmp_path, "", "train")


def test_the_digest_is_what_sha256sum_prints(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.jsonl", "b.jsonl")
    one, two = (hashlib.sha256(name.encode()).hexdigest() for name in ("a.jsonl", "b.jsonl"))
    assert content_digest(find_sources(root, "a.jsonl", "train")) == one
    listing = f"{one}  a.jsonl\n{two}  b.jsonl\n".encode()
    assert content_digest(find_sources(root, "", "train")) == hashlib.sha256(listing).hexdigest()
