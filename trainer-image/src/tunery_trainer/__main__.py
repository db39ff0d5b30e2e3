"""The program: `python -m tunery_trainer preflight|train|merge|report run.json` and `run manifest.yaml`."""

from __future__ import annotations

import sys

from tunery_trainer.cli import main
from tunery_trainer.environment import guard_output

if __name__ == "__main__":
    guard_output()
    sys.exit(main(sys.argv[1:]))
