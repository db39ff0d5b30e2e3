"""Which files of a model or a data set are fetched, whatever place they lie in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError

_MODEL_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_ADAPTER: Final = "adapter_config.json"
"""transformers loads the adapter that this file describes onto the model in the same folder."""
_NOT_MODEL_FILES: Final = (
    ".*",
    "consolidated*",
    _ADAPTER,
    "adapter_model*",
    "README*",
    "LICENSE*",
    "USE_POLICY*",
    "requirements*",
)
"""`consolidated*.safetensors` is the same weights again, in their maker's own layout."""
_TEMPLATE_FOLDER: Final = "additional_chat_templates"
_DATA_FILES: Final = re.compile(r"\.(jsonl|json|csv)(\.(gz|zst))?$|\.parquet$", re.IGNORECASE)
_GLOB: Final = re.compile(r"[*?\[]")


def model_files(names: Iterable[str], uri: str, *, weights: bool) -> list[str]:
    """Return the names that make up a model: safetensors, config, tokenizer and chat template; no pickles, no code.

    Without `weights` the safetensors files are left out, but must exist. Raises MODEL_NOT_FOUND if there is nothing,
    MODEL_UNSUPPORTED if config.json or the safetensors files are missing, or there is an adapter.
    """
    listed = sorted(names)
    found = [name for name in listed if is_model_file(name)]
    if not listed:
        raise TuneryError(FailureReason.MODEL_NOT_FOUND, f"spec.model.uri: there is nothing at {uri}")
    if _ADAPTER in listed:
        raise _holds_adapter(found, uri)
    if "config.json" not in found:
        reason = FailureReason.MODEL_UNSUPPORTED
        shown = ", ".join(listed[:8]) + (", …" if len(listed) > 8 else "")
        raise TuneryError(reason, f"spec.model.uri: {uri} has no config.json; there are: {shown}")
    if not any(name.endswith(".safetensors") for name in found):
        pickled = " (only .bin files, which are pickles)" if any(n.endswith(".bin") for n in listed) else ""
        message = f"spec.model.uri: {uri} has no safetensors files{pickled}"
        raise TuneryError(FailureReason.MODEL_UNSUPPORTED, message)
    return [name for name in found if weights or not name.endswith(".safetensors")]


def _holds_adapter(found: list[str], uri: str) -> TuneryError:
    """Return the failure for a folder that holds an adapter, beside a model or alone."""
    if "config.json" in found and any(name.endswith(".safetensors") for name in found):
        message = f"holds an adapter beside the model: {_ADAPTER}, which transformers would load with the model"
        remedies = (
            retry(f"Remove {_ADAPTER} from the model's folder"),
            recreate("Name a copy of the model without it", "model.uri"),
        )
    else:
        message = f"holds an adapter ({_ADAPTER}), and no model in safetensors format"
        remedies = (
            recreate("Name the base model that the adapter was trained on", "model.uri"),
            recreate("Name the adapter in continueFrom, to train it further", "continueFrom"),
        )
    return TuneryError(FailureReason.MODEL_UNSUPPORTED, f"spec.model.uri: {uri} {message}", *remedies)


def split_pattern(path: str) -> tuple[str, str]:
    """Return the folder of `path` up to the first part with a glob sign, and the rest (empty without a glob)."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if _GLOB.search(part):
            return "/".join(parts[:index]), "/".join(parts[index:])
    return path, ""


def data_files(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that are data files and that `pattern` (a file, a folder or a glob; empty: all) names."""
    wanted = re.compile(_glob_regex(pattern)) if pattern else None
    return [name for name in sorted(names) if _DATA_FILES.search(name) and (wanted is None or wanted.fullmatch(name))]


def is_model_file(name: str) -> bool:
    """Return whether `name`, relative to the model, is one of the files that make up a model."""
    path = PurePosixPath(name)
    if len(path.parts) == 2:
        return path.parts[0] == _TEMPLATE_FOLDER and path.suffix == ".jinja"
    if len(path.parts) != 1 or any(fnmatchcase(name, pattern) for pattern in _NOT_MODEL_FILES):
        return False
    return any(fnmatchcase(name, pattern) for pattern in _MODEL_FILES)


def _glob_regex(pattern: str) -> str:
    """Translate a glob as pathlib reads it: `*` stays within a folder, `**/` is any depth; a folder names all in it."""
    out, index = "", 0
    while index < len(pattern):
        rest = pattern[index:]
        if rest.startswith("**/"):
            out, index = out + "(?:.*/)?", index + 3
        elif rest.startswith("**"):
            out, index = out + ".*", index + 2
        elif (group := re.match(r"\[(!?)([^\]]+)\]", rest)) is not None:
            content = re.escape(group[2]).replace(r"\-", "-")
            out, index = f"{out}[{'^' if group[1] else ''}{content}]", index + len(group[0])
        else:
            out, index = out + {"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0])), index + 1
    return out + r"(?:/.*)?"
