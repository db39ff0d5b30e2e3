"""What the platform team decides: read once at start from TUNERY_… variables, which the chart renders."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tunery_api.fields import QuantityString, parse_quantity


class LogFormat(StrEnum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"


def _without_slash(uri: str) -> str:
    return uri.rstrip("/")


class Settings(BaseSettings):
    """The settings of one operator process."""

    model_config = SettingsConfigDict(env_prefix="TUNERY_", frozen=True, extra="forbid")

    trainer_image: str = Field(min_length=1)
    """The image of preflight, train and merge containers."""
    trainer_pull_policy: str = "IfNotPresent"
    trainer_pull_secrets: list[str] = Field(default_factory=list)
    """Names of Secrets in the jobs' namespaces; the kubelet reads them, the operator never does."""
    default_output_uri: Annotated[str, AfterValidator(_without_slash)] = ""
    """Where results go whose manifest names no place; empty: every manifest must name one."""
    default_output_secret: str = ""
    gpu_memory: dict[str, QuantityString] = Field(default_factory=dict)
    """Memory of one GPU, by resource name."""
    preflight_cpu: QuantityString = "1"
    preflight_memory: QuantityString = "4Gi"
    preflight_ephemeral_storage: QuantityString = "20Gi"
    progress_url: str = ""
    """The URL that pods post progress to; empty: pods are not asked to report."""
    progress_port: int = Field(8443, ge=0, le=65535)
    progress_tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt; None: no progress endpoint."""
    metrics_port: int = Field(8080, ge=0, le=65535)
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    log_format: LogFormat = LogFormat.TEXT

    def gpu_memory_bytes(self, resource: str) -> int | None:
        """Return the memory of one GPU of this resource in bytes, or None where the platform did not tell."""
        quantity = self.gpu_memory.get(resource)
        return None if quantity is None else int(parse_quantity(quantity))
