"""Provide `tunery train`: a LoRAJob from options, printed or submitted."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from tunery.app import App
from tunery.errors import ExitCode, UsageError
from tunery_api.methods import Method, Preset
from tunery_api.names import API_VERSION

Json = dict[str, Any]


@click.command("train")
@click.option("--model", required=True, metavar="URI", help="The base model, such as hf://Qwen/Qwen3-8B.")
@click.option("--data", required=True, metavar="URI", help="The data set, such as s3://data/support.jsonl.")
@click.option(
    "--method", type=click.Choice([each.value for each in Method], case_sensitive=False), help="Default: Auto."
)
@click.option(
    "--preset", type=click.Choice([each.value for each in Preset], case_sensitive=False), help="Recommended settings."
)
@click.option("--output", metavar="URI", help="Where to publish the adapter. Default: the platform's location.")
@click.option("--secret", metavar="NAME", help="The Secret with the keys of all s3:// URIs.")
@click.option("--name", metavar="NAME", help="Default: generated from model and data.")
@click.option("--gpus", type=int, metavar="N", help="GPUs; 0 trains on CPU. Default: 1.")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Such as training.epochs=3; repeatable.")
@click.option("--watch", is_flag=True, help="Follow the job until it has finished.")
@click.option("-o", "--output-format", "manifest", type=click.Choice(["yaml", "json"]), help="Only print the manifest.")
@click.pass_obj
def train_command(app: App, /, watch: bool, manifest: str | None, **options: Any) -> int:
    """Fine-tune an adapter: submit a LoRAJob with these settings, or print its manifest."""
    from tunery.commands.submit import submit
    from tunery.manifest import to_yaml, validate, with_settings

    if watch and manifest:
        raise UsageError("--watch and -o exclude each other: -o only prints the manifest", "Omit one of them")
    body = lorajob(options)
    body["spec"] = with_settings(body["spec"], options["settings"])
    manifests = validate([body], "the manifest of these options", app.namespace)
    if manifest is None:
        return submit(app, manifests, watch=watch)
    click.echo(to_yaml(body) if manifest == "yaml" else json.dumps(body, indent=2), nl=manifest != "yaml")
    return ExitCode.SUCCEEDED


def lorajob(options: Json) -> Json:
    """Return the LoRAJob of the options of `tunery train`, without those of --set. Raises UsageError."""
    model, data, output = options["model"], options["data"], options["output"]
    spec: Json = {"model": {"uri": model}, "dataset": {"uri": data}}
    spec |= {name: options[name] for name in ("method", "preset") if options[name]}
    if output:
        spec["output"] = {"uri": output}
    if options["gpus"] is not None:
        spec["resources"] = {"gpus": options["gpus"]}
    if options["secret"]:
        _refer(spec, options["secret"])
    metadata = {"name": options["name"] or generate_name(model, data)}
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
    from tunery.manifest import unique_name

    return unique_name("-".join(filter(None, (_word(model), _word(data)))) or "job")


def _word(uri: str) -> str:
    """Return the last part of a URI's path that is no pattern, without file endings, as part of a name."""
    parts = [part for part in uri.partition("://")[2].split("/") if part and not set(part) & set("*?[")]
    stem = re.sub(r"(\.(jsonl|json|parquet|csv|gz|zst))+$", "", parts[-1].lower() if parts else "")
    return re.sub("[^a-z0-9]+", "-", stem).strip("-")
