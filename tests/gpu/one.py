"""The process of a check: runs its cases one after the other and writes a line of JSON for each.

`python -m gpu.one REQUEST`, where REQUEST is what `running` asks for. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from gpu.verdicts import Case, Figures, Machine, Outcome, Verdict


def main(request: dict[str, Any]) -> int:
    """Run what is asked for; ends early, with 1, after a case that raised: a GPU may be of no more use then."""
    say = _own_stdout()
    given = {name: request[name] and Path(request[name]) for name in ("model", "data")}
    machine = Machine(request["dry"], Path(request["folder"]), **given)
    for check, asked in request["checks"].items():
        cases = _cases(asked["module"], machine)
        _line(say, {"check": check, "cases": list(cases)})
        for name, case in cases.items():
            if name in asked["done"]:
                continue
            _line(say, {"check": check, "begins": name})
            if not _run(say, {"check": check, "case": name}, case, machine):
                return 1
    return 0


def _cases(module_name: str, machine: Machine) -> dict[str, Case]:
    module = importlib.import_module(f"gpu.checks.{module_name}")
    # Imports leave half a million objects for good, and each case collects what it leaves: a third of a second each.
    gc.collect()
    gc.freeze()
    return dict(module.CHECK.cases(machine))


def _run(say: TextIO, names: dict[str, str], case: Case, machine: Machine) -> bool:
    """Run a case and tell how it ended; return whether the process is as good as before."""
    begin = time.perf_counter()
    try:
        outcome, whole = case.run(machine), True
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the outcome)
        traceback.print_exc()
        outcome, whole = _explained(error), False
    if machine.dry and case.needs_gpu and outcome.verdict is Verdict.PASSED:
        outcome = dataclasses.replace(outcome, verdict=Verdict.NEEDS_GPU)
    told = {"verdict": outcome.verdict.value, "words": outcome.words, "figures": _finite(outcome.figures)}
    _line(say, names | told | {"dry": machine.dry, "case_seconds": round(time.perf_counter() - begin, 2)})
    return whole


def _explained(error: Exception) -> Outcome:
    from tunery_trainer.process.failures import explain

    failure = explain(error)
    return Outcome(Verdict.FAILED, words=f"{failure.reason.value}: {failure.message}")


def _finite(figures: Figures) -> Figures:
    """Return the figures with words in place of what JSON has no number for."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value

    return {name: plain(value) for name, value in figures.items()}


def _own_stdout() -> TextIO:
    """Return a stream to whoever started this process; everything else that is printed goes to stderr."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


def _line(say: TextIO, content: dict[str, Any]) -> None:
    print(json.dumps(content), file=say, flush=True)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
