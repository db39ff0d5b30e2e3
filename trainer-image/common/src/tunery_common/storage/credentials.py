"""Credentials from a mounted Secret, or from the pod's own identity; never put into the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.redact import register_secret
from tunery_api.remedies import Remedy, retry
from tunery_common.errors import TuneryError

S3_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""What a Secret for S3 must hold; AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, AWS_CA_BUNDLE,
AWS_S3_ADDRESSING_STYLE and those of ENCRYPTION_KEYS may be there too."""
ENCRYPTION_KEYS: Final = ("AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID", "AWS_SSE_BUCKET_KEY_ENABLED")
"""What the server of a bucket is asked for as objects are written, by the names that other tools have for it."""
HUB_KEYS: Final = ("HF_TOKEN",)
"""What a Secret for a hub must hold; HF_ENDPOINT may be there too."""

_NOT_SECRET: Final = frozenset(
    {
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_CA_BUNDLE",
        "AWS_S3_ADDRESSING_STYLE",
        *ENCRYPTION_KEYS,
        "HF_ENDPOINT",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_USERNAME",
        "WANDB_BASE_URL",
    }
)
_FROM_ENVIRONMENT: Final = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_S3_ADDRESSING_STYLE",
    "AWS_CA_BUNDLE",
    *ENCRYPTION_KEYS,
    "HF_ENDPOINT",
)
_SECRET_ENVIRONMENT: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
)
_IN_HEADERS: Final = frozenset(
    {"AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN"}
)
"""What an HTTP client sends as it is, so that it must be ASCII; a client that refuses it would say the value."""
_WITHOUT_SPACES: Final = _IN_HEADERS | {"AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"}
_CHECKED: Final = _WITHOUT_SPACES | {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
_ONE_LINE: Final = "Write the value again as one line, without what was pasted around it"


@dataclass(frozen=True)
class Credentials:
    """Named values and where they came from; printing one shows no value."""

    source: str
    """For messages: `the Secret s3`, or `the environment of the pod`."""
    values: dict[str, str] = field(default_factory=dict, repr=False)
    folder: Path | None = field(default=None, repr=False)

    def get(self, name: str) -> str | None:
        """Return the value of `name`; an empty one counts as none."""
        return self.values.get(name) or None

    @property
    def ca_bundle(self) -> str | None:
        """Return the path of the CA bundle, if one is named; a Secret may hold the certificates themselves."""
        value = self.get("AWS_CA_BUNDLE")
        if value is not None and value.startswith("-----BEGIN") and self.folder is not None:
            return str(self.folder / "AWS_CA_BUNDLE")
        return value


def from_secret(
    folder: Path, name: str, needs: Iterable[str] = (), field_path: str = "", namespace: str = ""
) -> Credentials:
    """Read the Secret `name`, mounted at `folder` as one file for each key.

    White space around a value is no part of it; `namespace` is for commands. Raises SECRET_NOT_FOUND, after
    `field_path`: naming the Secret and the keys of `needs` that it lacks, or the key whose value has a line break or
    the like within.
    """
    where = f"{field_path}: " if field_path else ""
    needed = tuple(needs)
    # The operator mounts Secrets as optional, so that this sentence, and not a stuck pod, tells that one is missing.
    values = _read_files(folder, name, where) if folder.is_dir() else {}
    if not values:
        keys = f" with the keys {', '.join(needed)}" if needed else ""
        raise TuneryError(FailureReason.SECRET_NOT_FOUND, f"{where}the Secret {name}{keys} does not exist")
    missing = [key for key in needed if not values.get(key)]
    if missing:
        message = f"{where}the Secret {name} lacks the keys {', '.join(missing)} (needed: {', '.join(needed)})"
        add = retry(f"Add the missing keys: {_patch(name, namespace, missing)}")
        raise TuneryError(FailureReason.SECRET_NOT_FOUND, message, add)
    for key, value in values.items():
        if key not in _NOT_SECRET:
            register_secret(value)
    for key, value in values.items():
        write = retry(f"{_ONE_LINE}: {_patch(name, namespace, [key])}")
        _check_characters(key, value, f"{where}the key {key} of the Secret {name}", write)
    settings = {key: os.environ[key] for key in _FROM_ENVIRONMENT if os.environ.get(key)}
    if any(key in values for key in ENCRYPTION_KEYS):
        # A bucket is encrypted in one way: that of another, which the platform named, has no part in it.
        settings = {key: value for key, value in settings.items() if key not in ENCRYPTION_KEYS}
    return Credentials(f"the Secret {name}", settings | values, folder)


def ambient() -> Credentials:
    """Return what the pod's workload identity, or a user's own environment, offers.

    The keys themselves are left to boto3's usual chain (environment, files, web identity, instance role). Raises
    SECRET_NOT_FOUND for a variable whose value has a line break or the like.
    """
    for key in _SECRET_ENVIRONMENT:
        register_secret(os.environ.get(key, ""))
    for key in _SECRET_ENVIRONMENT:
        _check_characters(key, os.environ.get(key, ""), f"{key} in the environment", retry(_ONE_LINE))
    names = (*_FROM_ENVIRONMENT, "HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN")
    return Credentials("the environment", {key: os.environ[key] for key in names if os.environ.get(key)})


def _patch(name: str, namespace: str, keys: Iterable[str]) -> str:
    """Return the command that writes keys into a Secret which is there, whatever else it holds."""
    where = f" -n {namespace}" if namespace else ""
    patch = json.dumps({"stringData": dict.fromkeys(keys, "VALUE")}, separators=(",", ":"))
    return f"`kubectl patch secret {name}{where} --type=merge -p '{patch}'`"


def _check_characters(key: str, value: str, what: str, remedy: Remedy) -> None:
    """Raise SECRET_NOT_FOUND, without the value, if it has a character that no such credential can have."""
    if key not in _CHECKED:
        return
    found = None
    if "\n" in value or "\r" in value:
        found = "a line break"
    elif not value.replace(" ", "").isprintable() or (key in _WITHOUT_SPACES and " " in value):
        found = "white space or a control character"
    elif key in _IN_HEADERS and not value.isascii():
        found = "a character that is not ASCII"
    if found is not None:
        message = f"{what} has {found} in its value, which no such credential has"
        raise TuneryError(FailureReason.SECRET_NOT_FOUND, message, remedy)


def _read_files(folder: Path, name: str, where: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        # The kubelet's own bookkeeping (..data, ..2026_…) lies beside the keys.
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            values[path.name] = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            message = f"{where}the key {path.name} of the Secret {name} cannot be read as text"
            raise TuneryError(FailureReason.SECRET_NOT_FOUND, message) from error
    return values
