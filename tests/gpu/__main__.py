"""What only a GPU can show, on a machine without a cluster and without the network: `make gpu`.

    python -m gpu --out OUT [--only CHECK ...] [--budget SECONDS] [--dry] [--wheels FOLDER]

Each check runs in a process of its own with a time limit. OUT/gpu.json has figures and verdict of each case as soon as
it has ended, and a later run goes on from there. With --wheels it runs on a bare machine that has Python and torch:
`make gpu-wheels` collects the folder. With --dry the same checks run in tiny shapes on the CPU.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import sys
import tempfile
from pathlib import Path

from gpu.carried import install
from gpu.registry import CHECKS
from gpu.running import Report, Request, run
from gpu.verdicts import Verdict
from tools.cluster.daemon import end_on_sigterm


def main(arguments: list[str]) -> int:
    """Run the checks; return 1 where a case has failed."""
    options = _parser().parse_args(arguments)
    end_on_sigterm()
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out / "gpu.json", options.earlier, dry=options.dry)
    with tempfile.TemporaryDirectory() as site:
        request = Request(
            options.out,
            tuple(options.only or CHECKS),
            dry=options.dry,
            budget=options.budget,
            model=options.model,
            data=options.data,
            packages=install(options.wheels, Path(site)) if options.wheels else (),
        )
        run(request, report)
    report.write()
    found = collections.Counter(itertools.chain.from_iterable(cases.values() for cases in report.verdicts().values()))
    print("; ".join(f"{verdict}: {count}" for verdict, count in found.items()))
    return 1 if found[Verdict.FAILED] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and log.txt")
    parser.add_argument("--only", nargs="+", choices=tuple(CHECKS), metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--budget", type=float, help="seconds after which nothing goes on")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--earlier", type=Path, help="a gpu.json to go on from, if it is not the one in --out")
    parser.add_argument("--wheels", type=Path, help="what `make gpu-wheels` has collected")
    parser.add_argument("--model", type=Path, help="a real model's folder, for a real loss curve")
    parser.add_argument("--data", type=Path, help="rows for it, as JSON lines")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
