"""Provide `tunery submit`: create the objects of a manifest, and follow them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunery.app import App
from tunery.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from tunery.manifest import Manifest
    from tunery.objects import View

DRY_RUNS = ("none", "client", "server")


@click.command("submit")
@click.option("-f", "--filename", "path", required=True, metavar="FILE", help="A manifest, or - for stdin.")
@click.option("--watch", is_flag=True, help="Follow the objects until they have finished.")
@click.option(
    "--dry-run",
    type=click.Choice(DRY_RUNS),
    default="none",
    help="client: only validate here. server: let the API server validate it, too. Nothing is created.",
)
@click.pass_obj
def submit_command(app: App, path: str, watch: bool, dry_run: str) -> int:
    """Create the objects of a manifest, in order.

    Every error of every document is shown at once, before anything is sent.
    """
    from tunery.manifest import parse_documents, validate

    text, source = read_text(path)
    return submit(app, validate(parse_documents(text, source), source, app.namespace), watch=watch, dry_run=dry_run)


def submit(app: App, manifests: Sequence[Manifest], *, watch: bool, dry_run: str = "none") -> ExitCode:
    """Create the objects of manifests, print each, and follow them if `watch` is true."""
    from tunery.manifest import create

    if watch and dry_run != "none":
        raise UsageError("--watch and --dry-run exclude each other: a dry run creates nothing", "Omit one of them")
    if dry_run == "client":
        for manifest in manifests:
            _show(app, manifest.reference, manifest.body, "valid (client dry run)")
        return ExitCode.SUCCEEDED
    checked = []
    if dry_run == "server" or len(manifests) > 1:
        # The API server validates all of them first: if it rejects one, nothing is created.
        checked = list(create(app.cluster, manifests, dry_run=True))
    if dry_run == "server":
        for each in checked:
            _show(app, each.reference, each.body, "valid (server dry run)")
        return ExitCode.SUCCEEDED
    created = []
    for each in create(app.cluster, manifests):
        created.append(each)
        follow_up = f". To follow it: tunery watch {each.reference} -n {each.metadata['namespace']}"
        _show(app, each.reference, each.body, "created" + (follow_up if len(manifests) == 1 and not watch else ""))
    return _follow(app, created) if watch else ExitCode.SUCCEEDED


def read_text(path: str) -> tuple[str, str]:
    """Return the text of a file, or of stdin for `-`, and how errors name it. Raises UsageError."""
    source = "stdin" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8-sig"), source
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", "Name an existing file, or - for stdin") from error
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}", "Name a readable file, or - for stdin") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8: {error.reason} at byte {error.start}", "Save it as UTF-8") from error


def _show(app: App, reference: str, body: dict[str, object], what: str) -> None:
    if app.is_json:
        app.print_json(body)
    else:
        app.print(f"{reference} {what}")


def _follow(app: App, created: Sequence[View]) -> ExitCode:
    """Follow objects one after the other, and return the exit code of the first that has not succeeded.

    An AdapterServer never finishes: it is followed only if there is nothing else.
    """
    from tunery.commands.watch import follow
    from tunery.objects import RUNNABLE

    codes = [follow(app, each) for each in [each for each in created if each.kind in RUNNABLE] or created]
    return next((code for code in codes if code != ExitCode.SUCCEEDED), ExitCode.SUCCEEDED)
