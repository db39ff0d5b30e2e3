"""The program: `python -m tunery_trainer preflight|train|merge|report run.json` and `run manifest.yaml`."""

from __future__ import annotations

import sys

from tunery_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
