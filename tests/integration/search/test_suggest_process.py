"""The program that asks Optuna, as a process: the same answer each time, small, quick, and gone with its answer."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tunery_api.lorasweep import SamplerType
from tunery_search import sampler as asking
from tunery_search.dimensions import Categorical, Condition, Dimension, Numeric
from tunery_search.protocol import Answer, Ask, ToldState, ToldTrial
from tunery_search.sampler import Processes, SuggestionFailed, suggestions

LORA = Condition("method", ("LoRA", "DoRA"))
SPACE: tuple[Dimension, ...] = (
    Categorical("method", ("LoRA", "DoRA", "IA3")),
    Numeric("training.learningRate", 1e-5, 5e-4, log=True),
    Categorical("lora.rank", ("4", "8", "16", "32", "64"), when=LORA),
    Numeric("lora.dropout", 0.0, 0.2, when=LORA),
    Numeric("training.warmup", 0.0, 0.2),
)


def told(number: int) -> ToldTrial:
    chance = random.Random(number)
    values = {
        "method": chance.choice(["LoRA", "DoRA", "IA3"]),
        "training.learningRate": f"{10 ** chance.uniform(-5, -3.31):.7f}",
        "training.warmup": f"{chance.uniform(0, 0.2):.4f}",
    }
    if values["method"] != "IA3":
        values |= {"lora.rank": chance.choice(["4", "8", "64"]), "lora.dropout": f"{chance.uniform(0, 0.2):.4f}"}
    state = chance.choice([ToldState.COMPLETE] * 8 + [ToldState.PRUNED, ToldState.FAILED, ToldState.RUNNING])
    value = 1 + chance.random() if state is ToldState.COMPLETE else None
    course = ((25, 2.0),) if state is ToldState.PRUNED else ()
    return ToldTrial(number=number, state=state, values=values, value=value, course=course)


def question(**fields: Any) -> Ask:
    trials = tuple(map(told, range(60)))
    known = {"seed": 42, "startup": 8, "space": SPACE, "trials": trials, "numbers": (60, 61, 62, 63), **fields}
    return Ask(sampler=SamplerType.TPE, **known)


def run(asked: str, **environment: str) -> bytes:
    command = [sys.executable, "-m", "tunery_search.optuna_sampler"]
    done = subprocess.run(command, input=asked.encode(), capture_output=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.slow
def test_the_same_question_has_the_same_answer_whatever_the_process_and_the_order_of_things() -> None:
    asked = question()
    mixed = asked.model_dump(mode="json", by_alias=True)
    chance = random.Random(1)
    chance.shuffle(mixed["trials"])
    chance.shuffle(mixed["space"])
    mixed["trials"] = [{**each, "values": dict(reversed(each["values"].items()))} for each in mixed["trials"]]
    other = Ask.model_validate(mixed)
    assert other != asked
    answers = {
        run(each.model_dump_json(by_alias=True), PYTHONHASHSEED=seed)
        for each, seed in ((asked, "0"), (asked, "1"), (other, "2"))
    }
    assert len(answers) == 1
    made = Answer.model_validate_json(answers.pop())
    assert [each.number for each in made.suggestions] == [60, 61, 62, 63]
    assert len(made.importance) >= 2
    assert suggestions(asked) == made


def test_it_is_small_and_quick() -> None:
    """Of 60 trials with conditions and four new ones: less than 80 MB, and less than two seconds of computing.

    Without what Optuna would import if it is there, and the operator's image has not.
    """
    program = (
        "import resource, runpy, sys\n"
        "for name in ('sklearn', 'scipy', 'pandas', 'plotly', 'torch'):\n    sys.modules[name] = None\n"
        "try:\n    runpy.run_module('tunery_search.optuna_sampler', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "own = resource.getrusage(resource.RUSAGE_SELF)\n"
        "high = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "loaded = [name for name in ('sqlalchemy', 'alembic') if name in sys.modules]\n"
        "print(own.ru_utime + own.ru_stime, int(high.split()[1]) / 1024, loaded, file=sys.stderr)\n"
    )
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=question().model_dump_json(by_alias=True).encode(),
        capture_output=True,
        env=environment,
        check=True,
    )
    seconds, megabytes, *loaded = done.stderr.decode().splitlines()[-1].split(maxsplit=2)
    assert loaded == ["[]"]
    assert float(megabytes) < 80
    assert float(seconds) < 2
    assert len(Answer.model_validate_json(done.stdout).suggestions) == 4


@pytest.mark.slow
def test_who_asks_does_not_load_optuna() -> None:
    program = (
        "import sys, tunery_operator.__main__, tunery_search.sampler, tunery_search.decision, "
        "tunery_search.history\nprint(sorted({'optuna', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_no_credential_of_this_process_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def watched(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        seen.update(options)
        return real(*args, **options)

    real = subprocess.Popen
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setattr(subprocess, "Popen", watched)
    assert len(suggestions(question()).suggestions) == 4
    assert "hush" not in str(seen["env"])


def test_a_process_that_does_not_answer_is_ended_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def watched(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*args, **options))
        return started[-1]

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", watched)
    with pytest.raises(SuggestionFailed, match="did not answer within 0 s"):
        suggestions(question(), timeout=0.01)
    # Left alone it would come to its end, too.
    assert [process.poll() for process in started] == [-signal.SIGKILL]


def test_who_ends_does_not_wait_for_a_process_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    os.mkfifo(asked)
    (tmp_path / "hangs.py").write_text(f"import time\nopen({str(asked)!r}, 'w').close()\ntime.sleep(99)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(asking, "_PROGRAM", "hangs")
    processes = Processes()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(suggestions, question(), 60, processes)
        asked.read_text()
        processes.close()
        with pytest.raises(SuggestionFailed, match="ended with -9"):
            answer.result(10)
    with pytest.raises(SuggestionFailed, match="any more"):
        suggestions(question(), processes=processes)


def test_a_process_that_fails_says_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SuggestionFailed, match=r"ended with 1: ValueError: .*low.*high"):
        suggestions(question(space=(Numeric("training.learningRate", 2.0, 1.0),), trials=(), startup=0))
    monkeypatch.setattr(asking, "_PROGRAM", "this")
    with pytest.raises(SuggestionFailed, match="the sampler's answer is none"):
        suggestions(question())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SuggestionFailed, match="could not be started"):
        suggestions(question())
