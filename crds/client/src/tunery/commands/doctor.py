"""Provide `tunery doctor`: check the cluster, the user's permissions and the namespace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from tunery.app import App
from tunery.errors import ExitCode, TuneryError

if TYPE_CHECKING:
    from tunery.checks import Check

_MARKS: Final = {"Passed": ("✓", None), "Failed": ("✗", "red"), "Unknown": ("?", "yellow")}


@click.command("doctor")
@click.pass_obj
def doctor_command(app: App, /) -> int:
    """Check the cluster, your permissions and the namespace.

    The marks: ✓ passed, ✗ failed, ? you may not see it. The exit code is 1 if a check has failed.
    """
    checks = []
    for check in _checks(app):
        checks.append(check)
        if not app.is_json:
            mark, style = _MARKS[check.result]
            app.print(f"{mark} {check.name}: {check.message}", style)
            if check.remedy:
                app.print(f"  {check.remedy}")
    if app.is_json:
        app.print_json([check._asdict() for check in checks])
    return ExitCode.FAILED if any(check.result == "Failed" for check in checks) else ExitCode.SUCCEEDED


def _checks(app: App) -> Iterator[Check]:
    """Yield each check as it is done; without an API server there are no further ones."""
    from tunery.checks import FAILED, Check, api_server, run_checks

    try:
        yield api_server(app.cluster)
    except TuneryError as error:
        yield Check("API server", FAILED, error.message, error.remedy or "Check the cluster: kubectl cluster-info")
        return
    yield from run_checks(app.cluster)
