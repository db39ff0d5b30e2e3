"""Provide `tunery train`: a LoRAJob from options, printed or submitted."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import click

from tunery.app import App
from tunery.errors import ExitCode, UsageError
from tunery_api.methods import Method, Preset


def _choice(names: type[StrEnum]) -> click.Choice[str]:
    """Return the values of an enum, in any case."""
    return click.Choice([each.value for each in names], case_sensitive=False)


@click.command("train")
@click.option("--model", required=True, metavar="URI", help="The base model, such as hf://Qwen/Qwen3-8B.")
@click.option("--data", required=True, metavar="URI", help="The data set, such as s3://data/support.jsonl.")
@click.option("--method", type=_choice(Method), metavar="NAME", help=f"{', '.join(Method)}. Default: Auto.")
@click.option("--preset", type=_choice(Preset), metavar="NAME", help=f"{', '.join(Preset)}. Default: none.")
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
    from tunery.builder import lorajob
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
