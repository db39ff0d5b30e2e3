"""What the demo finds in the S3 server: a model, and a data set in several forms."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tools.cluster import dataset, model

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MODEL_URI = f"s3://models/{model.NAME}"
DATASET_URI = "s3://datasets/chatterbot.jsonl"
PROMPTS_URI = "s3://datasets/chatterbot-prompts.jsonl"
PREFERENCES_URI = "s3://datasets/chatterbot-preferences.jsonl"
RATINGS_URI = "s3://datasets/chatterbot-ratings.jsonl"
ROWS = {
    DATASET_URI: dataset.write_messages,
    PROMPTS_URI: dataset.write_prompts,
    PREFERENCES_URI: dataset.write_preferences,
    RATINGS_URI: dataset.write_ratings,
}


def upload(s3: S3Client, root: str = "s3://") -> None:
    """Put the model and each form of the data set where their URIs say, below `root` instead of s3://."""
    for file in sorted(model.ensure().iterdir()):
        _put(s3, file, f"{MODEL_URI}/{file.name}", root)
    with tempfile.TemporaryDirectory() as folder:
        for uri, write in ROWS.items():
            file = Path(folder, "rows.jsonl")
            write(file)
            _put(s3, file, uri, root)


def _put(s3: S3Client, file: Path, uri: str, root: str) -> None:
    bucket, _, key = uri.replace("s3://", root).removeprefix("s3://").partition("/")
    s3.upload_file(str(file), bucket, key)
