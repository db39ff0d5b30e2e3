"""Build the manifest of a LoRAJob from a few settings, for `tunery train` and for programs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunery.cluster import Json
from tunery.errors import UsageError
from tunery.manifest import unique_name
from tunery_api.names import API_VERSION


def lorajob(options: Mapping[str, Any]) -> Json:
    """Return the LoRAJob of the options of `tunery train`, without those of --set; only model and data are required.

    Raises UsageError.
    """
    model, data = options["model"], options["data"]
    spec: Json = {"model": {"uri": model}, "dataset": {"uri": data}}
    spec |= {name: options[name] for name in ("method", "preset") if options.get(name)}
    if options.get("output"):
        spec["output"] = {"uri": options["output"]}
    if options.get("gpus") is not None:
        spec["resources"] = {"gpus": options["gpus"]}
    if options.get("secret"):
        _refer(spec, options["secret"])
    metadata = {"name": options.get("name") or generate_name(model, data)}
    return {"apiVersion": API_VERSION, "kind": "LoRAJob", "metadata": metadata, "spec": spec}


def _refer(spec: Json, secret: str) -> None:
    """Set the Secret of every s3:// URI. Raises UsageError if there is none."""
    blocks = [spec[name] for name in ("model", "dataset", "output") if spec.get(name, {}).get("uri", "")[:5] == "s3://"]
    if not blocks:
        remedy = f"For a gated model on Hugging Face, write --set model.secretRef.name={secret}"
        raise UsageError("--secret is for s3:// URIs, and there is none", remedy)
    for block in blocks:
        block["secretRef"] = {"name": secret}


def generate_name(model: str, data: str) -> str:
    """Return a name for a job: the last part of the model's URI, that of the data's, and five random characters."""
    return unique_name("-".join(filter(None, (_word(model), _word(data)))) or "job")


def _word(uri: str) -> str:
    """Return the last part of a URI's path that is no pattern, without file endings, as part of a name."""
    parts = [part for part in uri.partition("://")[2].split("/") if part and not set(part) & set("*?[")]
    stem = re.sub(r"(\.(jsonl|json|parquet|csv|gz|zst))+$", "", parts[-1].lower() if parts else "")
    return re.sub("[^a-z0-9]+", "-", stem).strip("-")
