"""`make bench`: every benchmark, one after the other; each prints its own figures, as ratios within one run."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

BENCHMARKS: Final = (
    "startup",
    "data_prep",
    "memory_estimate",
    "training",
    "default_runs",
    "merging",
    "merge_quality",
    "operator_latency",
    "methods",
    "sweep",
    "sweep_memory",
    "serving",
)


def main() -> int:
    """Run the benchmarks that are named, or all; return how many failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(BENCHMARKS)}")
    failed = 0
    for name in parser.parse_args().names or BENCHMARKS:
        print(f"== {name}", flush=True)
        tests = Path(__file__).resolve().parents[1]
        failed += subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False, cwd=tests).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
