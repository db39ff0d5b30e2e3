"""A sampler's process that hangs, as on a disk that does not answer: what is known is told, and the operator ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kit.operator.api import Api, eventually
from kit.operator.objects import lorasweep
from kit.operator.players import Kubelets
from kit.operator.process import OperatorProcess
from kit.operator.stage import make_namespace
from kit.operator.sweeps import Trials

HANGS = "import pathlib, time\npathlib.Path({!r}).touch()\ntime.sleep(1000)\n"


@pytest.mark.slow
def test_a_sampler_that_hangs_holds_up_neither_what_is_known_nor_the_operators_end(
    api: Api, own_operator: Callable[..., OperatorProcess], tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "optuna.py").write_text(HANGS.format(str(asked)))
    namespace, operator = make_namespace(api), own_operator()
    operator.environment["PYTHONPATH"] = str(tmp_path)
    players = Kubelets(api, Trials().end)
    players.start()
    operator.start()
    namespace.apply(lorasweep("s", maxTrials=4, parallelTrials=1, sampler={"type": "TPE", "startupTrials": 1}))
    eventually("the sampler is asked", asked.exists)
    assert [row["state"] for row in namespace.status("s", "lorasweeps")["trials"]] == ["Complete"]
    # Beside itself it waits 20 s at most: less than a sampler has.
    assert operator.stop() == 0
    players.stop()
    operator.assert_clean_log()
