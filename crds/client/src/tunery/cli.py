"""Provide the command line: its options, its subcommands, and how an error becomes an exit code.

A subcommand is imported when it is called, so that `tunery --help` needs no Kubernetes library.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import click

from tunery.app import App
from tunery.errors import ExitCode, TuneryError
from tunery.text import printable, use_plain_characters

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "submit": ("tunery.commands.submit", "Create the objects of a manifest."),
    "train": ("tunery.commands.train", "Fine-tune a model: a LoRAJob from options."),
    "list": ("tunery.commands.listing", "List jobs, merges, sweeps, batches and servers."),
    "get": ("tunery.commands.listing", "Show one object, and its failure in full."),
    "watch": ("tunery.commands.watch", "Follow an object until it has finished."),
    "logs": ("tunery.commands.logs", "Print the log of an object's pod."),
    "explain": ("tunery.commands.explain", "Say why an object waits or has failed, and what to do."),
    "compare": ("tunery.commands.compare", "Compare the settings and results of jobs."),
    "stop": ("tunery.commands.verbs", "Stop an object for good; a LoRAJob can publish its best weights."),
    "suspend": ("tunery.commands.verbs", "Suspend an object; it keeps its checkpoint."),
    "resume": ("tunery.commands.verbs", "Resume a suspended object."),
    "retry": ("tunery.commands.verbs", "Retry a failed object from its latest checkpoint."),
    "resubmit": ("tunery.commands.verbs", "Create a copy of an object with other settings."),
    "estimate": ("tunery.commands.estimate", "Estimate memory, disk and time without training."),
    "usage": ("tunery.commands.usage", "Sum up GPU hours by namespace, job or label."),
    "doctor": ("tunery.commands.doctor", "Check permissions, versions, queues and GPUs."),
}
"""The module and the help of each command, in the order of `--help`."""


class _Commands(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), f"{cmd_name}_command")
        taken = {option for parameter in command.params for option in parameter.opts}
        command.params += [each for each in _options(callback=_override) if taken.isdisjoint(each.opts)]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _options(**common: Any) -> list[click.Option]:
    """Return the options of all commands; they may stand before or after the name of a command."""
    common |= {"expose_value": not common}
    return [
        click.Option(["--kubeconfig"], metavar="FILE", help="Default: KUBECONFIG, then ~/.kube/config.", **common),
        click.Option(
            ["--context"], metavar="NAME", help="A context of the kubeconfig; default: its current.", **common
        ),
        click.Option(["-n", "--namespace"], metavar="NAME", help="Default: the namespace of the context.", **common),
        click.Option(["-o", "--output"], type=click.Choice(["text", "json"]), help="How to print.", **common),
    ]


def _override(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    """Use the value of an option after the name of a command."""
    app = ctx.find_object(App)
    if app is not None and value is not None:
        app.override(str(option.name), value)


@click.group(
    cls=_Commands, params=list[click.Parameter](_options()),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
@click.version_option(package_name="tunery")
@click.pass_context
def tunery(ctx: click.Context, /, **options: Any) -> None:
    """Fine-tune adapters on Kubernetes: submit, follow, understand and fetch them.

    NAME is the name of an object, or KIND/NAME if several kinds have it.
    """
    ctx.obj = App(options)


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    use_plain_characters()
    try:
        with _errors():
            return int(tunery.main(arguments, prog_name="tunery", standalone_mode=False) or 0)
    except _Exit as end:
        return end.code


class _Exit(Exception):
    """Ends the program with an exit code; what there was to say is printed."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def _errors() -> Iterator[None]:
    """Print an error for people, and raise the exit code that belongs to it."""
    try:
        yield
    except TuneryError as error:
        click.echo(printable(f"{error.reason}: {error.message}"), err=True)
        if error.remedy:
            click.echo(printable(f"  {error.remedy}"), err=True)
        raise _Exit(error.exit_code) from error
    except click.ClickException as error:
        error.show()
        raise _Exit(ExitCode.USAGE) from error
    except (KeyboardInterrupt, click.exceptions.Abort) as error:
        click.echo("\nInterrupted; nothing in the cluster was changed by that", err=True)
        raise _Exit(ExitCode.INTERRUPTED) from error
    except BrokenPipeError as error:
        # The reader, such as `head`, has ended. Python would print a traceback as it closes stdout.
        sys.stdout = None
        raise _Exit(ExitCode.SUCCEEDED) from error
