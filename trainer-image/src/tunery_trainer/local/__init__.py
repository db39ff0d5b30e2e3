"""A manifest without a cluster: the RunSpec that the operator would have written, so that the same code runs."""

from __future__ import annotations

import copy
import errno
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.fields import ApiModel, iter_fields, map_fields
from tunery_api.kinds import Kind
from tunery_api.lorajob import LoRAJobSpec, TrainingRun
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.manifest import CONFIG_FILE, MANIFEST_NAME, WEIGHTS_FILE
from tunery_api.names import API_VERSION, sibling_uri
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.runspec import ResolvedAdapter, RunIdentity, RunSpec
from tunery_api.validation import parse_adaptermerge, parse_lorajob
from tunery_common.errors import DISK_FULL, TuneryError
from tunery_common.inputs.file_selection import data_files, split_pattern
from tunery_common.storage.links import said_of_dead
from tunery_common.storage.transfer import hash_file
from tunery_search.space import complete_point, space_of, trial_spec
from tunery_search.validation import parse_lorasweep
from tunery_trainer.local.documents import is_object, name_of, read_documents, select

Spec = TypeVar("Spec", LoRAJobSpec, AdapterMergeSpec, LoRAJobSpec | AdapterMergeSpec, LoRASweepSpec)
NO_MODEL: Final = "file:///no-model"
"""The model of data that is checked without one: nothing is read there."""
_MANIFESTS: Final = (".yaml", ".yml")
_NOT_CHECKED: Final = ("output", "continueFrom", "resumeFrom", "tracking", "cache")
"""Of a manifest, what has nothing to say about its data."""
_NAME_DATA: Final = retry("Name a file or folder of rows, or a file with a LoRAJob or LoRASweep")


@dataclass(frozen=True)
class CheckRequest:
    """What `python -m tunery_trainer check` is asked to do; None: the default, or what the manifest says."""

    path: Path
    """A file or folder of data, or a manifest."""
    model: Path | None = None
    """A folder with a tokenizer."""
    task: str | None = None
    format: str | None = None
    template: str | None = None
    split: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    """Our name of a field, and that of the column that holds it."""
    max_length: int | None = None
    max_invalid_rows: int | None = None
    name: str | None = None
    """Which object, where a manifest holds several."""

    @cached_property
    def by_manifest(self) -> bool:
        """Whether it names a manifest, and not data."""
        if not self.path.is_file():
            return False
        return self.path.suffix.lower() in _MANIFESTS or (self.path.suffix.lower() == ".json" and is_object(self.path))


def load_manifest(path: Path, name: str | None) -> dict[str, Any]:
    """Return the manifest in `path` that runs without a cluster; `name` says which, where there are several.

    Raises InvalidSpec, and TuneryError where there is no such file.
    """
    return select(read_documents(path), path, name)


def load_run_spec(path: Path, work_dir: Path | None, name: str | None) -> RunSpec:
    """Return the RunSpec that the operator would have written for the LoRAJob or AdapterMerge in `path`.

    Relative file:// URIs are relative to it. Without `work_dir` a folder below the system's temporary one is used, the
    same for the same manifest, so that a rerun after a crash resumes. Raises as load_manifest.
    """
    return run_spec_of(load_manifest(path, name), path.resolve().parent, work_dir)


def run_spec_of(manifest: dict[str, Any], folder: Path, work_dir: Path | None) -> RunSpec:
    """Return the RunSpec of a manifest whose relative URIs are relative to `folder`; the rest as load_run_spec."""
    merge = manifest["kind"] == Kind.ADAPTERMERGE
    spec = parse_adaptermerge(manifest, local=True) if merge else parse_lorajob(manifest, local=True)
    spec = _placed(spec, folder, work_dir)
    run = _run_of(_identity(manifest, spec, spec), spec.output.uri or "", work_dir)
    own = {
        "lora_job": spec if isinstance(spec, LoRAJobSpec) else None,
        "adapter_merge": spec if isinstance(spec, AdapterMergeSpec) else None,
        "adapters": _adapters(spec),
        "resume_uri": spec.resume_from.uri if isinstance(spec, LoRAJobSpec) and spec.resume_from else None,
    }
    return run.model_copy(update=own)


def sweep_of(manifest: dict[str, Any], folder: Path, work_dir: Path | None) -> tuple[LoRASweepSpec, RunSpec]:
    """Return the spec of a LoRASweep, and the RunSpec of its end, which holds no trial yet; as run_spec_of."""
    spec = _placed(parse_lorasweep(manifest, local=True), folder, work_dir)
    return spec, _run_of(_identity(manifest, spec, spec.template), spec.output.uri or "", work_dir)


def _placed(spec: Spec, folder: Path, work_dir: Path | None) -> Spec:
    """Return the spec with each relative URI as it is seen from `folder`; raises InvalidSpec where it cannot run here.

    The folder to work in is made before anything is read that may take long.
    """
    problems = _hindrances(spec)
    if problems:
        raise InvalidSpec(problems)
    if work_dir:
        make_folder("--work-dir", work_dir)
    return map_fields(spec, lambda name, value: _absolute(value, folder) if name == "uri" and value else value)


def _hindrances(spec: LoRAJobSpec | AdapterMergeSpec | LoRASweepSpec) -> list[FieldError]:
    """Return what keeps a spec from running without a cluster, which may have what it lacks."""
    open_output = [FieldError("spec.output.uri", "is required without a cluster")] if spec.output.uri is None else []
    return [*_needs_cluster(spec), *open_output]


def _run_of(identity: RunIdentity, output_uri: str, work_dir: Path | None) -> RunSpec:
    own = work_dir.resolve() if work_dir else _private_folder(identity)
    return RunSpec(
        identity=identity,
        output_uri=output_uri,
        checkpoint_uri=(own / "checkpoints" / identity.uid).as_uri(),
        report_uri=sibling_uri(output_uri, "report"),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        work_dir=str(own),
        local=True,
    )


def make_folder(option: str, folder: Path) -> None:
    """Make the folder that an option of the command line names; raises TuneryError(InvalidSpec) where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        why = "it is a file" if folder.is_file() else error.strerror
        message = f"{option}: {folder} is no folder to write to: {why}"
        fix = retry(f"Name a writable folder with {option}")
        raise TuneryError(FailureReason.INVALID_SPEC, message, fix) from error


def read_lorajob(path: Path, name: str | None) -> LoRAJobSpec:
    """Return the spec of the LoRAJob in `path`, for a look at it: nothing that it names need be here.

    Relative file:// URIs are relative to the file. Raises InvalidSpec, and TuneryError where there is no such file.
    """
    manifest = select(read_documents(path), path, name)
    if manifest["kind"] != Kind.LORAJOB:
        sweep = "for one of its trials, put spec.template and some values into a LoRAJob"
        why = sweep if manifest["kind"] == Kind.LORASWEEP else "a merge trains nothing"
        raise InvalidSpec([FieldError("kind", f"must be LoRAJob, is {manifest['kind']}: {why}")])
    spec = parse_lorajob(manifest, local=True)
    folder = path.resolve().parent
    return map_fields(spec, lambda name, value: _absolute(value, folder) if name == "uri" and value else value)


def load_check_spec(request: CheckRequest, work_dir: Path) -> RunSpec:
    """Return the RunSpec of the LoRAJob whose data is to be checked; nothing is published by it.

    Raises TuneryError.
    """
    if not request.path.exists():
        what = f"there is no file or folder {request.path}"
        if request.path.is_symlink():
            what = f"{request.path} {said_of_dead(request.path)}"
        raise TuneryError(FailureReason.INVALID_SPEC, what, _NAME_DATA)
    if request.model is not None and not request.model.is_dir():
        fix = retry("Name the folder of a model, with config.json and tokenizer.json, or omit --model")
        raise TuneryError(FailureReason.INVALID_SPEC, f"--model: there is no folder {request.model}", fix)
    try:
        return run_spec_of(*_checked_manifest(request), work_dir)
    except InvalidSpec as error:
        fix = retry("Correct the named field, or the option that sets it")
        raise TuneryError(FailureReason.INVALID_SPEC, str(error), fix) from error


def _checked_manifest(request: CheckRequest) -> tuple[dict[str, Any], Path]:
    """Return the LoRAJob whose data is checked, and the folder that its relative URIs begin in."""
    if request.by_manifest:
        manifest, base = (
            copy.deepcopy(select(read_documents(request.path), request.path, request.name)),
            request.path.resolve().parent,
        )
        if manifest["kind"] == Kind.LORASWEEP:
            manifest = _first_trial(manifest)
        elif manifest["kind"] != Kind.LORAJOB:
            raise TuneryError(FailureReason.INVALID_SPEC, f"{request.path} holds no LoRAJob", _NAME_DATA)
    else:
        data = {"uri": _uri(request.path)}
        manifest, base = _lorajob({"model": {"uri": NO_MODEL}, "dataset": data, "resources": {"gpus": 0}}), Path.cwd()
    spec = manifest.get("spec")
    if isinstance(spec, dict):
        manifest["spec"] = _changed({name: value for name, value in spec.items() if name not in _NOT_CHECKED}, request)
    return manifest, base


def checked_sweep(request: CheckRequest) -> tuple[LoRASweepSpec, list[str]] | None:
    """Return the LoRASweep of a file that is checked, and what keeps it from running without a cluster; None: none.

    Raises as load_check_spec.
    """
    if not request.by_manifest:
        return None
    manifest = select(read_documents(request.path), request.path, request.name)
    if manifest["kind"] != Kind.LORASWEEP:
        return None
    spec = parse_lorasweep(manifest, local=True)
    return spec, [str(problem) for problem in _hindrances(spec)]


def _first_trial(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the LoRAJob of a point of a sweep's space: all its trials read the same data; raises InvalidSpec."""
    spec = parse_lorasweep(manifest, local=True)
    return _lorajob(trial_spec(spec, complete_point(space_of(spec).dimensions, {})))


def _lorajob(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": Kind.LORAJOB.value, "metadata": {"name": "check"}, "spec": spec}


def _changed(spec: dict[str, Any], request: CheckRequest) -> dict[str, Any]:
    """Return the spec with what the command line says in place of it."""
    data = {
        "format": request.format,
        "template": request.template,
        "split": request.split,
        "columns": dict(request.columns) or None,
        "maxInvalidRows": request.max_invalid_rows,
    }
    over: dict[str, dict[str, Any]] = {
        "dataset": data,
        "training": {"maxLength": request.max_length},
        "model": {"uri": _uri(request.model) if request.model else None},
    }
    for block, values in over.items():
        said = {name: value for name, value in values.items() if value is not None}
        if said and isinstance(spec.get(block, {}), dict):
            spec = {**spec, block: {**spec.get(block, {}), **said}}
    return {**spec, "output": {"uri": "file://unused"}, **({"task": request.task} if request.task else {})}


def _uri(path: Path) -> str:
    """Return the URI of what was named; of a link its own, as the file that it leads to may have no ending."""
    return f"file://{quote(glob.escape(os.path.abspath(path)))}"


def _identity(manifest: dict[str, Any], spec: ApiModel, reads: TrainingRun | AdapterMergeSpec) -> RunIdentity:
    """Return an identity that is the same for the same manifest and data: a rerun finds its checkpoints and result.

    `reads` says what the run reads.
    """
    name = name_of(manifest)
    # What becomes of it as it is stopped makes no other run of it, nor how long a sweep goes on.
    free = LoRASweepSpec.MUTABLE if isinstance(spec, LoRASweepSpec) else {"onStop"}
    wanted = {name: value for name, value in spec.to_json_dict().items() if name not in free}
    content = json.dumps([name, wanted, list(_data_digests(reads))], sort_keys=True)
    uid = hashlib.sha256(content.encode()).hexdigest()[:32]
    return RunIdentity(kind=manifest["kind"], namespace="local", name=name, uid=uid)


def _data_digests(spec: TrainingRun | AdapterMergeSpec) -> Iterator[str]:
    """Yield what tells a run's local files apart: with other rows, inputs or another base the old result is none."""
    yield from _input_digests(spec)
    for uri in _data_uris(spec):
        for path in _local_files(uri or ""):
            try:
                yield hash_file(path)
            except OSError:
                # Preflight says what is wrong with it.
                yield path.name


def _input_digests(spec: TrainingRun | AdapterMergeSpec) -> Iterator[str]:
    """Yield the digest of each local adapter's manifest, else those of its files, and what tells a local base apart.

    That is name, size and time of its weights.
    """
    inputs = spec.adapters if isinstance(spec, AdapterMergeSpec) else filter(None, [spec.continue_from])
    for uri in (item.uri or "" for item in inputs):
        manifest = _below(uri, MANIFEST_NAME)
        plain = not any(b"tunery.dev/" in path.read_bytes() for path in manifest)
        files = [path for name in (CONFIG_FILE, WEIGHTS_FILE) for path in _below(uri, name)]
        yield from (hash_file(path) for path in (*manifest, *(files if plain else ())))
    for path in _below(spec.model.uri if spec.model else "", "*.safetensors"):
        facts = path.stat()
        yield f"{path.name} {facts.st_size} {facts.st_mtime_ns}"


def _below(uri: str, pattern: str) -> list[Path]:
    if not uri.startswith("file://"):
        return []
    return sorted(path for path in Path(unquote(uri.removeprefix("file://"))).glob(pattern) if path.is_file())


def _data_uris(spec: TrainingRun | AdapterMergeSpec) -> tuple[str | None, ...]:
    if isinstance(spec, AdapterMergeSpec):
        return (spec.evaluation.dataset.uri if spec.evaluation else None,)
    evaluation = spec.dataset.evaluation
    return (spec.dataset.uri, evaluation.uri if evaluation else None)


def _local_files(uri: str) -> Iterator[Path]:
    """Yield the data files that a file:// URI names, in a fixed order; none for other URIs."""
    if not uri.startswith("file://"):
        return
    place, glob = split_pattern(unquote(uri.removeprefix("file://")))
    root = Path(place)
    if root.is_file():
        yield root
    elif root.is_dir():
        names = [entry.relative_to(root).as_posix() for entry in root.rglob("*") if entry.is_file()]
        yield from (root / name for name in data_files(names, glob))


def _private_folder(identity: RunIdentity) -> Path:
    """Return the manifest's own folder for temporary files, which only this user can enter."""
    folder = Path(tempfile.gettempdir()) / f"tunery-{os.getuid()}-{identity.uid}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        what = f"--work-dir is required: {folder} belongs to another user"
        raise TuneryError(FailureReason.INVALID_SPEC, what, retry("Name a folder of yours with --work-dir"))
    return folder


def _adapters(spec: LoRAJobSpec | AdapterMergeSpec) -> list[ResolvedAdapter]:
    if isinstance(spec, AdapterMergeSpec):
        return [ResolvedAdapter(uri=adapter.uri) for adapter in spec.adapters if adapter.uri]
    source = spec.continue_from
    return [ResolvedAdapter(uri=source.uri)] if source and source.uri else []


def _absolute(uri: str, folder: Path) -> str:
    """Return a relative file:// URI as it is seen from `folder`, and any other as it is."""
    if not uri.startswith("file://"):
        return uri
    # The part that the user wrote keeps its globs; the folder is quoted, as a URI has it.
    written = uri.removeprefix("file://")
    base = "" if written.startswith("/") else quote(str(folder)) + "/"
    return f"file://{os.path.normpath(base + written)}"


def _needs_cluster(spec: ApiModel) -> Iterator[FieldError]:
    """Yield an error for each field that only a cluster can resolve."""
    if isinstance(spec, LoRASweepSpec) and spec.warm_start_from:
        text = (
            "works in a cluster only, which has the other sweeps' trials; leave it out here, or list their best values"
        )
        yield FieldError("spec.warmStartFrom", f"{text} as initial")
    if isinstance(spec, LoRAJobSpec) and spec.stop is not None:
        yield FieldError("spec.stop", "works in a cluster only; press Ctrl-C here, with onStop: Publish to keep it")
    for path, name, value, _ in iter_fields(spec, "spec"):
        if name == "lora_job_ref" and value is not None:
            yield FieldError(path, "works in a cluster only; use uri here")
        elif name == "uri" and isinstance(value, str) and value.startswith(("pvc://", "configmap://")):
            yield FieldError(path, f"{value.split(':')[0]}:// works in a cluster only; use file:// here")
