"""The init container: has the base model in the folder that the engine serves, or says why it cannot be there."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tunery_api.failures import Subject, render_hint
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.redact import redact
from tunery_api.remedies import retry
from tunery_api.runspec import RunResult
from tunery_api.serving import ServeSpec
from tunery_common.errors import DISK_FULL, TuneryError, first_line
from tunery_common.inputs.fetch import claim_model_files, fetch_model
from tunery_common.inputs.headers import BadHeader, read_header
from tunery_common.inputs.location import FetchedModel, Location
from tunery_common.storage.authorities import trust_platform
from tunery_common.storage.credentials import HUB_KEYS, S3_KEYS, Credentials, ambient, from_secret
from tunery_common.termination import write_termination
from tunery_server.adapters.base import RECORD
from tunery_server.gateway.auth import CREATE_SECRET, ApiKeys

_FETCHED: Final = ".fetched"
"""Where downloads go on that an earlier container began: below the model's folder, so that nothing is copied."""

_log = logging.getLogger(__name__)


def main(spec: ServeSpec) -> int:
    """Bring the model; return the exit code, with the failure in the termination message and on stderr."""
    try:
        _check_keys(spec)
        trust_platform()
        bring_model(spec)
    except Exception as error:  # noqa: BLE001 (the last words of a container)
        explained = _explained(error)
        if explained.reason is FailureReason.INTERNAL_ERROR:
            _log.exception("the base model cannot be downloaded")
        write_termination(RunResult(failure=explained.failure))
        server = Subject("AdapterServer", spec.identity.name, spec.identity.namespace)
        print(redact(str(explained)), file=sys.stderr)
        print(render_hint(explained.failure, server), file=sys.stderr, flush=True)
        return int(explained.exit_code)
    return int(ExitCode.OK)


def _check_keys(spec: ServeSpec) -> None:
    """Raise SecretNotFound if there are no API keys, before the model is downloaded and the engine starts."""
    if problem := ApiKeys(spec.api_keys).problem():
        raise TuneryError(FailureReason.SECRET_NOT_FOUND, problem, CREATE_SECRET)


def bring_model(spec: ServeSpec, *, allow_file: bool = False) -> Path:
    """Have the model's files in `spec.model_dir`, by their own names; return that folder.

    What is downloaded is linked there from a folder below, so that a container that starts again brings nothing twice.
    A claim's files are linked to by symbolic links: they may be larger than any disk of the pod, and the claim is
    mounted at the same place in every container that reads the model. Raises what fetch_model raises, and
    ModelUnsupported where a file of weights is damaged.
    """
    target = Path(spec.model_dir)
    place = _location(spec, allow_file=allow_file)
    if spec.model.uri.startswith(("hf://", "s3://")):
        found = fetch_model(place, target / _FETCHED)
        names = [path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()]
        names = [name for name in names if not name.startswith(".")]
        link = _hard_link
    else:
        folder, names = claim_model_files(place)
        found = FetchedModel(folder, None, 0)
        link = _symbolic_link
    _check_weights(found.folder, names)
    _remove_others(target, names)
    for name in names:
        link(found.folder / name, target / name)
    record = {"revision": found.revision, "digest": found.digest}
    (target / RECORD).write_text(json.dumps({key: value for key, value in record.items() if value}), encoding="utf-8")
    return target


def _location(spec: ServeSpec, *, allow_file: bool) -> Location:
    return Location(
        spec.model.uri,
        _credentials(spec),
        mount=Path(spec.model_mount) if spec.model_mount else None,
        revision=spec.model.revision,
        allow_file=allow_file,
        disk=spec.disk,
    )


def _credentials(spec: ServeSpec) -> Credentials:
    secret, uri = spec.model_secret, spec.model.uri
    if secret is None:
        return ambient()
    needs = S3_KEYS if uri.startswith("s3://") else HUB_KEYS if uri.startswith("hf://") else ()
    return from_secret(Path(secret.path), secret.name, needs, secret.field, spec.identity.namespace)


def _check_weights(folder: Path, names: Iterable[str]) -> None:
    """Raise ModelUnsupported where a file of weights is cut off or none at all: the engine would say it in a trace."""
    for name in names:
        if name.endswith(".safetensors"):
            try:
                read_header(folder / name)
            except BadHeader as error:
                fetch = retry(f"Fetch {name} again from where the model comes, and replace this one")
                message = f"spec.model.uri: {name} {error}"
                raise TuneryError(FailureReason.MODEL_UNSUPPORTED, message, fetch) from error


def _remove_others(target: Path, names: Iterable[str]) -> None:
    """Remove what an earlier container has linked and the model has not any more."""
    kept = {*names}
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if not name.startswith(".") and name not in kept and (path.is_symlink() or path.is_file()):
            path.unlink()


def _hard_link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    os.link(source, target)


def _symbolic_link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source)


def _explained(error: Exception) -> TuneryError:
    if isinstance(error, TuneryError):
        return error
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return TuneryError(FailureReason.DISK_FULL, f"no space left on the disk: {first_line(error)}")
    return TuneryError(FailureReason.INTERNAL_ERROR, f"{type(error).__name__}: {first_line(error)}")
