"""Provide what the options of the command line say: which cluster, and how to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from tunery.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from tunery.cluster import Cluster


class App:
    """What the options say: the cluster, and how to print."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)

    def override(self, name: str, value: str) -> None:
        """Set an option, such as namespace, before anything has used it."""
        self._options[name] = value

    @cached_property
    def cluster(self) -> Cluster:
        """The cluster that the options name. Raises TuneryError."""
        from tunery.cluster import Cluster

        return Cluster.load(self._options["kubeconfig"], self._options["context"], self._options["namespace"])

    @property
    def namespace(self) -> str | None:
        """The namespace of the option -n; None if it is not given."""
        namespace: str | None = self._options["namespace"]
        return namespace

    @cached_property
    def console(self) -> Console:
        """The terminal, or a pipe."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True, emoji=False)

    @property
    def is_json(self) -> bool:
        """Whether to print JSON only."""
        return bool(self._options["output"] == "json")

    def print(self, text: str = "", style: str | None = None) -> None:
        """Print text of the cluster or of a user; nothing in it is markup."""
        self.console.print(printable(text), style=style, markup=False)

    def print_json(self, value: Any) -> None:
        """Print a JSON document on one line."""
        plain = not (sys.stdout.encoding or "").lower().startswith("utf")
        click.echo(json.dumps(value, ensure_ascii=plain, default=str))


pass_app = click.make_pass_decorator(App)
