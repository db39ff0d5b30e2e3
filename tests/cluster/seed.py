"""What the demo finds in the S3 server: a model and a data set."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import dataset, model

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MODEL_URI = f"s3://models/{model.NAME}"
DATASET_URI = "s3://datasets/chatterbot.jsonl"
PROMPTS_URI = "s3://datasets/chatterbot-prompts.jsonl"


def upload(s3: S3Client) -> None:
    """Put the model and both forms of the data set into their buckets."""
    for file in sorted(model.ensure().iterdir()):
        s3.upload_file(str(file), "models", f"{model.NAME}/{file.name}")
    with tempfile.TemporaryDirectory() as folder:
        for uri, write in ((DATASET_URI, dataset.write_messages), (PROMPTS_URI, dataset.write_prompts)):
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            file = Path(folder, key)
            write(file)
            s3.upload_file(str(file), bucket, key)
