"""The manifests in docs/examples: those of Tunery; Kueue's, which stand beside them, are tried on a real Kueue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunery_api.kubectl_yaml import documents_of
from tunery_api.names import API_VERSION

from kit.installation import ROOT

EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the objects of Tunery in one file."""
    return [document for document in documents_of(path.read_text()) if document["apiVersion"] == API_VERSION]
