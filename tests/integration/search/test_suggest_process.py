"""The process that asks Optuna: the same answer each time, small, quick, and gone with its answer."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tunery_search import sampler
from tunery_search.dimensions import Numeric
from tunery_search.history import SuggestionRequest
from tunery_search.sampler import SuggestionFailed, suggest

from kit import proposals
from kit.proposals import METHODS, history


def question(**fields: Any) -> SuggestionRequest:
    """Return a question that needs Optuna."""
    known = {"startup": 8, "trials": history(METHODS, 60), "numbers": (60, 61, 62, 63), **fields}
    return proposals.question(known.pop("space", METHODS), **known)


@pytest.mark.slow
def test_the_same_question_has_the_same_answer_whatever_the_process_and_the_order_of_things(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = question()
    mixed = asked.model_dump(mode="json", by_alias=True)
    chance = random.Random(1)
    chance.shuffle(mixed["trials"])
    chance.shuffle(mixed["space"])
    mixed["trials"] = [{**each, "values": dict(reversed(each["values"].items()))} for each in mixed["trials"]]
    other = SuggestionRequest.model_validate(mixed)
    assert other != asked
    answers = []
    for each, seed in ((asked, "0"), (asked, "1"), (other, "2")):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        answers.append(suggest(each))
    assert answers[0] == answers[1] == answers[2]
    assert [each.number for each in answers[0].suggestions] == [60, 61, 62, 63]
    assert len(answers[0].importance) >= 2


def test_it_is_small_and_quick_and_holds_no_credential() -> None:
    """Of 60 trials with conditions and four new ones: less than 80 MB, and less than two seconds of computing.

    Without what Optuna would import if it is there, and the operator's image has not.
    """
    program = (
        "import os, resource, sys, multiprocessing\n"
        "for name in ('sklearn', 'scipy', 'pandas', 'plotly', 'torch'):\n    sys.modules[name] = None\n"
        "from tunery_search.history import SuggestionRequest\n"
        "from tunery_search.sampler import _suggest_with_optuna\n"
        "answer = _suggest_with_optuna(SuggestionRequest.model_validate_json(sys.stdin.buffer.read()), 60)\n"
        "own = resource.getrusage(resource.RUSAGE_SELF)\n"
        "high = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "loaded = [name for name in ('sqlalchemy', 'alembic') if name in sys.modules]\n"
        "print(own.ru_utime + own.ru_stime, int(high.split()[1]) / 1024, loaded, len(answer.suggestions),"
        "os.environ.get('AWS_SECRET_ACCESS_KEY'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=question().model_dump_json(by_alias=True).encode(),
        capture_output=True,
        env={"AWS_SECRET_ACCESS_KEY": "hush", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=True,
    )
    seconds, megabytes, *rest = done.stdout.decode().split()
    assert rest == ["[]", "4", "None"]
    assert float(megabytes) < 80
    assert float(seconds) < 2


@pytest.mark.slow
def test_who_asks_does_not_load_optuna() -> None:
    program = (
        "import sys, tunery_operator.__main__, tunery_search.sampler, tunery_search.decision, "
        "tunery_search.history\nprint(sorted({'optuna', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_process_stays_behind_an_answer() -> None:
    assert len(suggest(question()).suggestions) == 4
    assert multiprocessing.active_children() == []


def test_a_process_that_hangs_is_ended_and_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text("import time\ntime.sleep(99)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sampler, "TIMEOUT_SECONDS", 1)
    with pytest.raises(SuggestionFailed, match="was killed, or had no answer within 1 s"):
        suggest(question())
    assert multiprocessing.active_children() == []


def test_a_process_that_is_killed_is_reported_and_costs_no_other_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    hangs = f"import pathlib, time\nif not pathlib.Path({str(asked)!r}).exists():\n"
    (tmp_path / "optuna.py").write_text(f"{hangs}    pathlib.Path({str(asked)!r}).touch()\n    time.sleep(99)\nboom\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(suggest, question())
        while not asked.exists():
            time.sleep(0.05)
        (hanging,) = multiprocessing.active_children()
        second = threads.submit(suggest, question())
        with pytest.raises(SuggestionFailed, match="NameError: name 'boom' is not defined"):
            second.result(30)
        assert not first.done()
        hanging.kill()
        with pytest.raises(SuggestionFailed, match="was killed"):
            first.result(10)


def test_what_optuna_refuses_is_reported() -> None:
    with pytest.raises(SuggestionFailed, match=r"the sampler failed: ValueError: .*low.*high"):
        suggest(question(space=(Numeric("training.learningRate", 2.0, 1.0),), trials=(), startup=0))
