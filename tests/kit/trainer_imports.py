"""Import what the trainer imports, after what its program does before: for a fork server."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import Final

from tunery_trainer.process.environment import guard_output, prepare_environment

FOLDER_ENV: Final = "TUNERY_TESTS_FOLDER"
"""Names a folder for the libraries' caches, and for what a pass was found to hold in another process."""

_folder = Path(os.environ[FOLDER_ENV])
guard_output()
prepare_environment(_folder, gpus=0)
logging.root.handlers.clear()  # each process has its own

for name in (
    "bitsandbytes",
    "datasets",
    "matplotlib.backends.backend_agg",
    "peft.tuners.lora.bnb",
    "transformers.models.llama.modeling_llama",
    "trl",
    "tunery_trainer.cli",
    "tunery_trainer.merging.run",
    "tunery_trainer.merging.without_weights",
    "tunery_trainer.plan.disk",
    "tunery_trainer.plan.look_ahead",
    "tunery_trainer.plan.request",
    "tunery_trainer.plan.training_plan",
    "tunery_trainer.tasks.check",
    "tunery_trainer.tasks.publish_best",
    "tunery_trainer.tasks.following",
    "tunery_trainer.tasks.merge",
    "tunery_trainer.tasks.preflight",
    "tunery_trainer.tasks.publish",
    "tunery_trainer.tasks.report",
    "tunery_trainer.tasks.sweep",
    "tunery_trainer.tasks.train",
    "tunery_trainer.training.run",
    "tunery_trainer.training.trl_trainer",
    "tunery_trainer.training.unfinished",
):
    importlib.import_module(name)

memory = importlib.import_module("tunery_trainer.model.memory")
memory.count = importlib.import_module("kit.counted_once").counted_once(memory.count, _folder)
