"""The objects in a manifest's file, and which of them is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.kinds import Kind
from tunery_api.kubectl_yaml import documents_of
from tunery_api.names import GROUP
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError

KINDS: Final = (Kind.LORAJOB, Kind.ADAPTERMERGE, Kind.LORASWEEP)
"""What runs without a cluster."""
_OBJECT_BYTES: Final = 2 * 1024**2
_NAME_A_FILE: Final = retry("Name the file that holds the LoRAJob, LoRASweep, or AdapterMerge")


def read_documents(path: Path) -> list[Any]:
    """Return the documents of a file; raises InvalidSpec where they are none, TuneryError where it cannot be read."""
    try:
        return [document for document in documents_of(path.read_text("utf-8")) if document is not None]
    except FileNotFoundError as error:
        raise TuneryError(FailureReason.INVALID_SPEC, f"there is no file {path}", _NAME_A_FILE) from error
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise TuneryError(FailureReason.INVALID_SPEC, message, _NAME_A_FILE) from error
    except json.JSONDecodeError as error:
        message = f"{path} is not valid JSON, as what begins with a brace has to be: {error}"
        raise InvalidSpec([FieldError("manifest", message)]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidSpec([FieldError("manifest", f"{path} is not valid YAML: {reason}")]) from error


def is_object(path: Path) -> bool:
    """Tell whether a JSON file is one object of our API, such as `kubectl get -o json` writes it, and not data."""
    try:
        # An API server stores no more of an object; data may be of any size.
        if path.stat().st_size > _OBJECT_BYTES:
            return False
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and str(found.get("apiVersion")).startswith(f"{GROUP}/")


def select(documents: list[Any], path: Path, name: str | None) -> dict[str, Any]:
    """Return the one document to run; what is of another kind (a Secret, a Namespace) is passed over.

    Raises InvalidSpec where there is none, and TuneryError where it is not said which.
    """
    mappings = [document for document in documents if isinstance(document, dict)]
    ours = [document for document in mappings if document.get("kind") in KINDS]
    if not ours:
        kinds = [str(document.get("kind")) for document in mappings] or ["nothing"]
        message = f"must be LoRAJob, LoRASweep or AdapterMerge, which run without a cluster; {path} holds"
        apart = ": write each of its items as a document of its own, with --- between them" * kinds[-1].endswith("List")
        raise InvalidSpec([FieldError("kind", f"{message} {', '.join(kinds)}{apart}")])
    chosen = [document for document in ours if name is None or name_of(document) == name]
    if len(chosen) != 1:
        names = [name_of(document) for document in ours]
        remedies = [retry(f"Select one by its name, such as --name {names[0]}")]
        if chosen and (name or len(set(names)) == 1):
            remedies = [recreate(f"Give each of the {len(chosen)} objects a metadata.name of its own")]
        lacks = f"; none of them is called {name}" if name and not chosen else ""
        message = f"metadata.name: {path} holds {', '.join(names)}{lacks}"
        raise TuneryError(FailureReason.INVALID_SPEC, message, *remedies)
    return chosen[0]


def name_of(document: dict[str, Any]) -> str:
    """Return the name of an object; `unnamed` where it has none."""
    metadata = document.get("metadata")
    return str(metadata.get("name", "unnamed")) if isinstance(metadata, dict) else "unnamed"
