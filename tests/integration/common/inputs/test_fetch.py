"""Models and data sets come from S3, a hub, a claim or a folder; only what is needed, and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunery_api.reasons import FailureReason
from tunery_api.remedies import Action
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import fetch_dataset, fetch_model
from tunery_common.inputs.file_selection import data_files
from tunery_common.inputs.location import FetchedDataset, Location
from tunery_common.storage import Store, transfer
from tunery_common.storage.credentials import Credentials
from tunery_trainer.data.sources import find_sources

from kit.hub_server import COMMIT, TOKEN, HubServer
from kit.s3 import credentials
from tools.cluster.s3 import S3Server

MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ x }}",
    "additional_chat_templates/tool.jinja": b"{{ y }}",
    "model-00001-of-00002.safetensors": b"w" * 3000,
    "model-00002-of-00002.safetensors": b"v" * 2000,
    "model.safetensors.index.json": b"{}",
}
NOT_WANTED = {
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the same again",
    "modeling_custom.py": b"code",
    "README.md": b"#",
    "onnx/model.safetensors": b"other",
    "original/params.json": b"{}",
}
SMALL = {name for name in MODEL if not name.endswith(".safetensors")}
NONE = Credentials("the environment")


def _names(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(".")}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    repos = {
        "models/owner/model": {**MODEL, **NOT_WANTED},
        "models/owner/gated": MODEL,
        "models/owner/pickled": {"config.json": b"{}", "pytorch_model.bin": b"p"},
        "models/owner/both": {**MODEL, "adapter_config.json": b"{}"},
        "datasets/owner/data": {"data/train-0.jsonl": b'{"text": "a"}\n', "data/test-0.jsonl": b"{}", "README.md": b""},
    }
    with HubServer(repos, gated={"models/owner/gated"}) as server:
        yield server


def _hub_credentials(hub: HubServer, **values: str) -> Credentials:
    return Credentials("the Secret hf", {"HF_ENDPOINT": hub.url, **values})


def _fill(store: Store, prefix: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        store.put_bytes(f"{prefix}/{name}", data)


@pytest.mark.parametrize("weights", [True, False], ids=["train", "preflight"])
def test_model_from_s3(s3_server: S3Server, bucket: str, s3_store: Store, tmp_path: Path, weights: bool) -> None:
    _fill(s3_store, "models/tiny", {**MODEL, **NOT_WANTED})
    place = Location(f"s3://{bucket}/models/tiny", credentials(s3_server))
    seen: list[tuple[int, int]] = []
    found = fetch_model(place, tmp_path, weights=weights, progress=lambda done, total: seen.append((done, total)))
    assert _names(found.folder) == (set(MODEL) if weights else SMALL)
    assert found.weight_bytes == 5000
    assert seen[-1][0] == seen[-1][1] == sum(len(MODEL[name]) for name in _names(found.folder))
    lines = "".join(f"{hashlib.sha256(MODEL[name]).hexdigest()}  {name}\n" for name in sorted(MODEL))
    assert found.digest == (hashlib.sha256(lines.encode()).hexdigest() if weights else None)


def test_second_fetch_downloads_only_what_changed(
    s3_server: S3Server, bucket: str, s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunery_common.storage.s3 import S3Store

    _fill(s3_store, "m", MODEL)
    place = Location(f"s3://{bucket}/m", credentials(s3_server))
    first = fetch_model(place, tmp_path)
    downloaded: list[str] = []
    download = S3Store.download

    def spy(self: S3Store, key: str, *args: object) -> str:
        downloaded.append(key)
        return download(self, key, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(S3Store, "download", spy)
    again = fetch_model(place, tmp_path)
    assert (again, again.digest) == (first, first.digest)
    assert downloaded == []
    s3_store.put_bytes("m/config.json", b'{"model_type": "other"}')
    (first.folder / "merges.txt").unlink()
    assert fetch_model(place, tmp_path).digest != first.digest
    assert sorted(downloaded) == ["m/config.json", "m/merges.txt"]


@pytest.mark.parametrize("weights", [True, False], ids=["train", "preflight"])
def test_model_from_hub(hub: HubServer, tmp_path: Path, weights: bool) -> None:
    found = fetch_model(Location("hf://owner/model", _hub_credentials(hub)), tmp_path, weights=weights)
    assert _names(found.folder) == (set(MODEL) if weights else SMALL)
    assert (found.revision, found.digest, found.weight_bytes) == (COMMIT, None, 5000)
    for name in _names(found.folder):
        assert (found.folder / name).read_bytes() == MODEL[name]
    files = [line for line in hub.requests if "/resolve/" in line]
    assert files
    assert all(f"/resolve/{COMMIT}/" in line for line in files)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", 500)
    monkeypatch.setattr("tunery_common.inputs.hub._LARGE", 1000)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "whole-files-only"])
def test_large_files_of_a_hub_come_by_ranges_where_it_sends_them(hub: HubServer, tmp_path: Path, ranges: bool) -> None:
    hub.ranges = ranges
    place, seen = Location("hf://owner/model", _hub_credentials(hub)), []
    found = fetch_model(place, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert all((found.folder / name).read_bytes() == data for name, data in MODEL.items())
    assert _names(found.folder) == set(MODEL)
    assert seen[-1][0] == seen[-1][1] == sum(map(len, MODEL.values()))
    assert all(0 < done <= total for done, total in seen)
    assert len(hub.asked) == (6 + 4 if ranges else 0)
    assert not [path for path in found.folder.iterdir() if path.suffix in (".partial", ".done")]
    hub.requests.clear()
    fetch_model(place, tmp_path)
    assert not [line for line in hub.requests if "/resolve/" in line]


@pytest.mark.usefixtures("small_parts")
def test_a_file_that_is_not_what_the_hub_says_is_refused(hub: HubServer, tmp_path: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    hub.told[name] = "0" * 64
    place = Location("hf://owner/model", _hub_credentials(hub))
    with pytest.raises(TuneryError, match=f"{name} of hf://owner/model came with another SHA-256") as caught:
        fetch_model(place, tmp_path)
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    hub.told.clear()
    assert (fetch_model(place, tmp_path).folder / name).read_bytes() == MODEL[name]


@pytest.mark.usefixtures("small_parts")
def test_a_gated_models_large_files_say_so(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(TuneryError, match="is gated") as caught:
        fetch_model(Location("hf://owner/gated", _hub_credentials(hub)), tmp_path)
    assert caught.value.reason is FailureReason.MODEL_GATED


def test_gated_model_says_so_and_opens_with_the_token(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(TuneryError, match="is gated, and no HF_TOKEN was given") as caught:
        fetch_model(Location("hf://owner/gated", _hub_credentials(hub)), tmp_path, weights=False)
    assert caught.value.reason is FailureReason.MODEL_GATED
    (accept,) = caught.value.remedies
    assert (accept.action, accept.fields) == (Action.RECREATE, ["model.secretRef"]), "the field cannot change"
    wrong = "hf_wrongwrongwrong"
    with pytest.raises(TuneryError, match="the token in the Secret hf has no access") as caught:
        fetch_model(Location("hf://owner/gated", _hub_credentials(hub, HF_TOKEN=wrong)), tmp_path, weights=False)
    assert wrong not in caught.value.message
    (accept,) = caught.value.remedies
    assert (accept.action, "the token in the Secret hf" in accept.text) == (Action.RETRY, True)
    found = fetch_model(Location("hf://owner/gated", _hub_credentials(hub, HF_TOKEN=TOKEN)), tmp_path, weights=False)
    assert _names(found.folder) == SMALL


@pytest.mark.parametrize(
    ("uri", "revision", "reason", "says"),
    [
        ("hf://owner/none", None, FailureReason.MODEL_NOT_FOUND, "hf://owner/none does not exist on the hub"),
        ("hf://owner/model", "v9", FailureReason.MODEL_NOT_FOUND, r"spec\.model\.revision.*'v9'"),
        ("hf://owner/a/b", None, FailureReason.MODEL_NOT_FOUND, r"hf://owner/a/b"),
        ("hf://owner/pickled", None, FailureReason.MODEL_UNSUPPORTED, "no safetensors files.*pickles"),
        ("hf://owner/both", None, FailureReason.MODEL_UNSUPPORTED, "holds an adapter beside the model"),
    ],
    ids=["unknown", "revision", "bad-name", "pickled", "model-and-adapter"],
)
def test_hub_refusals(
    hub: HubServer, tmp_path: Path, uri: str, revision: str | None, reason: FailureReason, says: str
) -> None:
    with pytest.raises(TuneryError, match=says) as caught:
        fetch_model(Location(uri, _hub_credentials(hub), revision=revision), tmp_path)
    assert caught.value.reason is reason
    named = [remedy for remedy in caught.value.remedies if remedy.fields == ["model.secretRef"]]
    assert bool(named) is ("none" in uri), "it may be private"


def test_hub_that_fails_or_is_gone_is_worth_a_retry(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.failing = True
    for endpoint in (hub.url, "http://127.0.0.1:1"):
        with pytest.raises(TuneryError, match="hf://owner/model") as caught:
            fetch_model(Location("hf://owner/model", Credentials("x", {"HF_ENDPOINT": endpoint})), tmp_path)
        assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_hub_endpoint_may_not_be_link_local(tmp_path: Path) -> None:
    place = Location("hf://owner/model", Credentials("the Secret hf", {"HF_ENDPOINT": "http://169.254.169.254"}))
    with pytest.raises(TuneryError, match="HF_ENDPOINT in the Secret hf leads to the link-local") as caught:
        fetch_model(place, tmp_path)
    assert caught.value.reason is FailureReason.INVALID_SPEC


def test_model_in_a_claim_or_a_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "claim" / "models" / "tiny"
    for name, data in MODEL.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    claim = fetch_model(Location("pvc://claim/models/tiny", NONE, mount=tmp_path / "claim"), tmp_path / "cache")
    local = fetch_model(Location(folder.as_uri(), NONE, allow_file=True), tmp_path / "cache")
    assert claim == local
    assert claim.folder == folder
    lines = "".join(f"{hashlib.sha256(MODEL[name]).hexdigest()}  {name}\n" for name in sorted(MODEL))
    assert claim.digest == local.digest == hashlib.sha256(lines.encode()).hexdigest()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (Location("file:///etc", NONE), FailureReason.INVALID_SPEC),
        (Location("pvc://claim/../../etc", NONE, mount=Path("/tmp")), FailureReason.INVALID_SPEC),
        (Location("pvc://claim/no/such", NONE, mount=Path("/tmp")), FailureReason.MODEL_NOT_FOUND),
        (Location("file:///no/such", NONE, allow_file=True), FailureReason.MODEL_NOT_FOUND),
    ],
    ids=["file-in-cluster", "traversal", "missing-in-claim", "missing-file"],
)
def test_local_places_refused(place: Location, reason: FailureReason, tmp_path: Path) -> None:
    with pytest.raises(TuneryError) as caught:
        fetch_model(place, tmp_path)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("link", "says"),
    [
        (None, "is a folder, and not the file of that name"),
        ("gone", "is a link to gone, where nothing is"),
        ("model-00003-of-00003.safetensors", "is a link to .*, which leads back to itself"),
    ],
)
def test_what_stands_in_the_place_of_a_models_file_is_named(tmp_path: Path, link: str | None, says: str) -> None:
    name = "model-00003-of-00003.safetensors"
    for known in ("config.json", "model-00001-of-00003.safetensors"):
        (tmp_path / known).write_text("{}")
    (tmp_path / name).symlink_to(link) if link else (tmp_path / name).mkdir()
    with pytest.raises(TuneryError, match=rf"spec\.model\.uri: {name} {says}") as caught:
        fetch_model(Location(tmp_path.as_uri(), NONE, allow_file=True), tmp_path / "cache")
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND
    assert "Replace it with the file itself" in caught.value.remedies[0].text


@pytest.mark.parametrize("scheme", ["file", "pvc"])
def test_a_place_that_is_a_link_to_itself_is_told_as_one(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "a.jsonl").symlink_to("a.jsonl")
    uri = (tmp_path / "a.jsonl").as_uri() if scheme == "file" else "pvc://claim/a.jsonl"

    def find() -> None:
        found = fetch_dataset(Location(uri, NONE, mount=tmp_path, allow_file=True), tmp_path / "cache")
        find_sources(found.root, found.pattern, "train")

    with pytest.raises(TuneryError, match=r"is a link to a\.jsonl, which leads back to itself") as caught:
        find()
    assert caught.value.reason is FailureReason.DATASET_NOT_FOUND
    assert {remedy.action for remedy in caught.value.remedies} == {Action.RETRY}, "it is fixed where it is"


ROWS = {
    "train.jsonl": b'{"text": "a"}\n',
    "more/train-1.jsonl.gz": b"gz",
    "more/deep/train-2.parquet": b"pq",
    "notes.md": b"no",
    "training_args.bin": b"no",
}


@pytest.mark.parametrize(
    ("path", "pattern", "files"),
    [
        ("d/train.jsonl", "train.jsonl", {"train.jsonl"}),
        ("d", "", {"train.jsonl", "more/train-1.jsonl.gz", "more/deep/train-2.parquet"}),
        ("d/*.jsonl", "*.jsonl", {"train.jsonl"}),
        ("d/mo?e/*", "mo?e/*", {"more/train-1.jsonl.gz", "more/deep/train-2.parquet"}),
        ("d/**/*.parquet", "**/*.parquet", {"more/deep/train-2.parquet"}),
    ],
    ids=["file", "folder", "glob", "glob-folder", "glob-deep"],
)
def test_dataset_from_s3(
    s3_server: S3Server, bucket: str, s3_store: Store, tmp_path: Path, path: str, pattern: str, files: set[str]
) -> None:
    _fill(s3_store, "d", ROWS)
    found = fetch_dataset(Location(f"s3://{bucket}/{path}", credentials(s3_server)), tmp_path)
    assert _names(found.root) == files
    assert found.pattern == pattern
    assert {source.name for source in find_sources(found.root, found.pattern, None)} == files


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("e/none", "there are: nothing"),
        ("d/trian.jsonl", "at s3://.*/d/trian.jsonl; there are: .*train.jsonl"),
        ("d/*.csv", "there are: .*train.jsonl"),
    ],
    ids=["folder", "key", "glob"],
)
def test_missing_dataset_in_s3(
    s3_server: S3Server, bucket: str, s3_store: Store, tmp_path: Path, path: str, says: str
) -> None:
    _fill(s3_store, "d", ROWS)
    with pytest.raises(TuneryError, match=says) as caught:
        fetch_dataset(Location(f"s3://{bucket}/{path}", credentials(s3_server)), tmp_path)
    assert caught.value.reason is FailureReason.DATASET_NOT_FOUND


def test_dataset_from_hub(hub: HubServer, tmp_path: Path) -> None:
    found = fetch_dataset(Location("hf://owner/data", _hub_credentials(hub)), tmp_path)
    assert found.revision == COMMIT
    assert _names(found.root) == {"data/train-0.jsonl", "data/test-0.jsonl"}
    part = fetch_dataset(Location("hf://owner/data/data/train*", _hub_credentials(hub)), tmp_path / "part")
    assert _names(part.root) == {"data/train-0.jsonl"}


def test_a_misspelt_file_is_told_with_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(TuneryError, match=r"trian\.jsonl does not exist; did you mean train\.jsonl\?") as caught:
        fetch_dataset(Location(f"file://{tmp_path}/trian.jsonl", Credentials({}), allow_file=True), tmp_path)
    assert caught.value.reason is FailureReason.DATASET_NOT_FOUND


def test_dataset_in_mounts_and_folders(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_text("{}")
    for place, expected in (
        (Location("configmap://rows/train.jsonl", NONE, mount=tmp_path / "d"), (tmp_path / "d", "train.jsonl")),
        (Location("pvc://claim/d/*.jsonl", NONE, mount=tmp_path), (tmp_path, "d/*.jsonl")),
        (Location(f"{(tmp_path / 'd').as_uri()}/*.jsonl", NONE, allow_file=True), (tmp_path / "d", "*.jsonl")),
        (Location((tmp_path / "d/train.jsonl").as_uri(), NONE, allow_file=True), (tmp_path / "d/train.jsonl", "")),
    ):
        found = fetch_dataset(place, tmp_path / "cache")
        assert found == FetchedDataset(*expected)
        assert [source.path for source in find_sources(found.root, found.pattern, None)] == [tmp_path / "d/train.jsonl"]


@pytest.mark.parametrize(
    ("uri", "files", "says"),
    [
        ("configmap://rows/train.jsonl", [], "the ConfigMap rows does not exist in the job's namespace, or is empty"),
        ("configmap://rows", [], "the ConfigMap rows does not exist"),
        (
            "configmap://rows/trian.jsonl",
            ["train.jsonl", "b.csv"],
            "the ConfigMap rows has no key 'trian.jsonl'; its keys are: b.csv, train.jsonl",
        ),
        ("pvc://claim/d/x.jsonl", ["d/train.jsonl"], "the claim claim has nothing at 'd/x.jsonl'; there are: d"),
        ("pvc://claim/d/*.jsonl", [], "the claim claim is empty"),
    ],
)
@pytest.mark.parametrize("field", ["spec.dataset.uri", "spec.dataset.evaluation.uri"])
def test_missing_dataset_in_a_mount(tmp_path: Path, uri: str, files: list[str], says: str, field: str) -> None:
    (tmp_path / "..2026_11_25").mkdir()
    (tmp_path / "..data").symlink_to("..2026_11_25")  # as the kubelet leaves it for a ConfigMap that is not there
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(TuneryError) as caught:
        fetch_dataset(Location(uri, NONE, mount=tmp_path, field=field), tmp_path / "cache")
    assert caught.value.reason is FailureReason.DATASET_NOT_FOUND
    assert caught.value.message.startswith(f"{field}: {says}")
    assert ".." not in caught.value.message


MADE = "kubectl create configmap rows -n team --from-file={} --dry-run=client -o json | "
APPLIED = MADE + "kubectl apply -n team --server-side -f -"
PATCHED = MADE + "kubectl patch configmap rows -n team --type=merge --patch-file=/dev/stdin"


@pytest.mark.parametrize(
    ("path", "files", "namespace", "command"),
    [
        ("/a.jsonl", [], "team", APPLIED.format("a.jsonl=FILE")),
        ("", [], "team", APPLIED.format("FILE")),
        ("/*.jsonl", [], "team", APPLIED.format("FILE")),
        ("/a.jsonl", ["b.jsonl"], "team", PATCHED.format("a.jsonl=FILE")),
        ("/a.jsonl", [], "", APPLIED.format("a.jsonl=FILE").replace(" -n team", "")),
    ],
)
def test_data_is_put_into_a_config_map_whether_it_exists_or_not(
    tmp_path: Path, path: str, files: list[str], namespace: str, command: str
) -> None:
    """What it holds beside it stays, and no annotation holds the data once more, which ends at 256 KiB."""
    for name in files:
        (tmp_path / name).write_text("{}")
    place = Location(f"configmap://rows{path}", NONE, mount=tmp_path, namespace=namespace)
    with pytest.raises(TuneryError) as caught:
        fetch_dataset(place, tmp_path / "cache")
    (write,) = caught.value.remedies
    assert (write.action, f"`{command}`" in write.text) == (Action.RETRY, True)


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("a", ["a/x.csv", "a/y.json"]),
        ("[ab]/x.csv", ["a/x.csv", "b/x.csv"]),
        ("[!a]/*", ["b/x.csv"]),
        ("a.csv", []),
        ("**", ["a/x.csv", "a/y.json", "b/x.csv"]),
    ],
)
def test_data_files_follow_the_glob(pattern: str, files: list[str]) -> None:
    assert data_files(["a/x.csv", "a/y.json", "b/x.csv", "acsv", "b/z.txt"], pattern) == files
