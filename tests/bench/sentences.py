"""Sentences for generated rows: English that people wrote, from a package."""

from __future__ import annotations

from pathlib import Path

import yaml
from chatterbot_corpus import corpus


def sentences() -> list[str]:
    """Return every turn of the corpus's conversations."""
    return [
        str(turn)
        for file in sorted(Path(corpus.DATA_DIRECTORY, "english").glob("*.yml"))
        for conversation in yaml.safe_load(file.read_text())["conversations"]
        for turn in conversation
        if str(turn).strip()
    ]
