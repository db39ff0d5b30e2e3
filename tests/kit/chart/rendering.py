"""Helm as a function: values in, parsed objects out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunery_operator.config import Settings

CHART = Path(__file__).resolve().parents[3] / "charts" / "tunery"
VERSION: str = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
NAMESPACE = "tunery-system"
KUBE_VERSION = "1.34.0"


class HelmError(Exception):
    """Helm ended with an error; the message is what it printed."""


@dataclass(frozen=True)
class Rendered:
    """The objects that the chart renders."""

    documents: list[dict[str, Any]]

    @classmethod
    def parse(cls, text: str) -> Rendered:
        """Read what `helm template` printed."""
        # The loader in C: the CRDs alone are 7,000 lines.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return cls([document for document in yaml.load_all(text, Loader=loader) if document])

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        return [document for document in self.documents if document["kind"] == kind]

    def one(self, kind: str) -> dict[str, Any]:
        """Return the only object of a kind."""
        (document,) = self.of(kind)
        return document

    def pod(self) -> dict[str, Any]:
        """Return the spec of the operator's pod."""
        spec: dict[str, Any] = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    def dashboards(self) -> list[dict[str, Any]]:
        """Return the ConfigMaps with Grafana dashboards."""
        return [each for each in self.of("ConfigMap") if any(name.endswith(".json") for name in each["data"])]

    def config(self) -> dict[str, Any]:
        """Return the content of config.yaml, which the operator's pod mounts."""
        (text,) = (each["data"]["config.yaml"] for each in self.of("ConfigMap") if "config.yaml" in each["data"])
        config: dict[str, Any] = yaml.safe_load(text)
        return config

    def settings(self) -> Settings:
        """Return the settings that the operator reads from it."""
        return Settings.model_validate(self.config())


@dataclass(frozen=True)
class Helm:
    """The helm program."""

    path: str

    def run(self, *arguments: str) -> str:
        """Return what `helm ARGUMENTS` prints; raises HelmError when it fails."""
        done = subprocess.run([self.path, *arguments], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise HelmError(done.stderr + done.stdout)
        return done.stdout

    def render(self, *settings: str, values: Mapping[str, Any] | None = None, tests: bool = False) -> Rendered:
        """Return what the chart renders with `key=value` settings, and values as a file has them.

        What `helm test` makes, and nobody else, is among it where that is asked for.
        """
        flags = [part for setting in settings for part in ("--set", setting)]
        flags += [
            part for key, value in (values or {}).items() for part in ("--set-json", f"{key}={json.dumps(value)}")
        ]
        flags += [] if tests else ["--skip-tests"]
        text = self.run("template", "tunery", str(CHART), "-n", NAMESPACE, "--kube-version", KUBE_VERSION, *flags)
        return Rendered.parse(text)
