"""Prepared data on disk, under a key of everything that it depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tunery_api.inputs import DatasetFormat
from tunery_trainer.data.options import DataOptions, DatasetReport, TokenReport
from tunery_trainer.data.single_pass import Files
from tunery_trainer.data.template import DEFAULT_TEMPLATE
from tunery_trainer.data.tokenizer import Tokenizer

VERSION: Final = 6
"""Raise it with every change to what `prepare` makes of the same input."""

_REPORT = "report.json"


def cache_key(files: Files, options: DataOptions, tokenizer: Tokenizer) -> str:
    """Hex SHA-256 of our version, the content of the files, the tokenizer, its template and the options."""
    names = [[source.name for source in side] for side in (files.train, files.evaluation)]
    # Places are in `names` and the digests: the folder that holds them may change from run to run.
    # Nor does it matter what the digests have to be, and for whom.
    plain = dataclasses.replace(options, evaluation_root=None, sha256=None, evaluation_sha256=None, sweep=None)
    settings = dataclasses.asdict(dataclasses.replace(plain, columns=dict(options.columns)))
    parts = [
        VERSION,
        names,
        files.sha256,
        files.evaluation_sha256,
        tokenizer.backend_tokenizer.to_str(),
        [tokenizer.eos_token_id, tokenizer.special_tokens_map],
        tokenizer.chat_template or DEFAULT_TEMPLATE,
        settings,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def read_entry(cache_dir: Path, key: str) -> tuple[Path, DatasetReport] | None:
    """The folder and the report of a finished entry; None if there is none."""
    path = cache_dir / key
    if not (path / _REPORT).is_file():
        return None
    stored = json.loads((path / _REPORT).read_text())
    tokens = TokenReport(**stored.pop("tokens"))
    for name in ("first_invalid", "ignored_columns"):
        stored[name] = tuple(stored[name])
    return path, DatasetReport(**stored | {"format": DatasetFormat(stored["format"]), "tokens": tokens})


@contextmanager
def new_entry(cache_dir: Path, key: str) -> Iterator[Path]:
    """An empty folder that becomes the entry when the block ends well, and is removed when it does not."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=cache_dir))
    try:
        yield folder
        target = cache_dir / key
        # Another process may have been faster: its entry is as good as ours.
        if not target.exists():
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_report(folder: Path, report: DatasetReport) -> None:
    """Put the report into a new entry; without it the entry is not complete."""
    (folder / _REPORT).write_text(json.dumps(dataclasses.asdict(report)))
