"""The fixtures of the trainer's tests."""

from kit.fixtures.tasks import learned, run_file, sweep, train
from kit.fixtures.trainer import (
    case,
    estimates,
    family_folder,
    llama,
    one_thread,
    remembering,
    tiny_model,
    tokenizer,
    write,
)
