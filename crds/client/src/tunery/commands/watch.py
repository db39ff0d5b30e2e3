"""Provide `tunery watch`: follow an object until it has finished."""

from __future__ import annotations

import click

from tunery.app import App
from tunery.describe import Line
from tunery.errors import ExitCode
from tunery.objects import View, find, parse_duration
from tunery_api.serverstatus import ServerPhase
from tunery_api.status import Phase


@click.command("watch")
@click.argument("name")
@click.option("--timeout", metavar="TIME", help="Stop watching after this time, such as 90s, 30m or 2h.")
@click.pass_obj
def watch_command(app: App, /, name: str, timeout: str | None) -> ExitCode:
    """Follow an object until it has finished, an AdapterServer until it is ready.

    The exit code is 0 if it succeeded, 1 if it failed, 3 if it was stopped, and 124 after --timeout. The object
    continues if you end this command.
    """
    seconds = None if timeout is None else parse_duration(timeout)
    return follow(app, find(app.cluster, name), seconds)


def follow(app: App, view: View, seconds: float | None = None) -> ExitCode:
    """Show an object until it has finished, and return the exit code of its end. Raises TimedOut after `seconds`."""
    from tunery.follow import follow as states
    from tunery.watching import Lines, LiveLine, show

    followed = states(app.cluster, view, seconds)
    if app.is_json:
        return exit_code(show(followed, _Documents(app)))
    if not app.console.is_terminal:
        return exit_code(show(followed, Lines(app.print)))
    with LiveLine(app.console).running() as display:
        return exit_code(show(followed, display))


def exit_code(view: View) -> ExitCode:
    """Return the exit code for the last state of an object."""
    if view.phase == ServerPhase.INVALID or view.phase == Phase.FAILED:
        return ExitCode.FAILED
    return ExitCode.STOPPED if view.finished and view.phase == Phase.STOPPED else ExitCode.SUCCEEDED


class _Documents:
    """Prints each state as JSON, one a line."""

    def __init__(self, app: App) -> None:
        self._app = app

    def tell(self, line: Line) -> None:
        """Print nothing: a program reads the status."""

    def update(self, view: View) -> None:
        """Print the object."""
        self._app.print_json(view.body)
