"""What a run held out of its data, and the loss of it with a published adapter, by plain transformers and PEFT."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunery_api.lorajob import LoRAJobSpec
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.single_pass import Survey, find_files
from tunery_trainer.data.split import held_out

SCRIPT = Path(__file__).with_name("plain_peft_loss.py")


def held_out_lines(file: Path, job_spec: Mapping[str, Any]) -> list[str]:
    """Return the lines of a data file, all of them good rows, that a job with this spec holds out to evaluate with."""
    options = DataOptions.of(LoRAJobSpec.model_validate(job_spec), "", None, "")
    with tempfile.TemporaryDirectory() as notes:
        survey = Survey(find_files(file, options), options, Notebook(Path(notes)))
        deque(survey.digests(survey.train), maxlen=0)
        drawn = held_out(survey.train.seen, options.evaluation_fraction, options.seed)
    lines = file.read_text("utf-8").splitlines(keepends=True)
    return [lines[ordinal] for ordinal in drawn]


def plain_peft_loss(model: Path, adapter: Path, rows: Path, max_length: int | None = None) -> float:
    """Return the loss of rows with an adapter on its base model, each in a place on the disk.

    Rows are cut at `max_length` tokens, as a run cuts them at its training.maxLength; None: none is that long.
    """
    # Without its own folder among those of modules: here lies an operator.py.
    command = [
        sys.executable,
        "-P",
        str(SCRIPT),
        str(model),
        str(adapter),
        str(rows),
        *([str(max_length)] if max_length else []),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(told.stdout)
