"""Provide the answer to a question: in this process, or by Optuna in a child process that ends with its answer.

Optuna takes 33 MB and half a second of import, which the end of the child gives back.
"""

from __future__ import annotations

import os
import signal
import warnings
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Final

from tunery_api.lorasweep import SamplerType
from tunery_search.propose import learnt_from, proposed, random_draw
from tunery_search.protocol import IMPORTANCE_FROM, Answer, Ask, ToldState

TIMEOUT_SECONDS: Final = 60
_SINGLE: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_MESSAGE: Final = 500


class SuggestionFailed(Exception):
    """The sampler has no answer; asking again may help."""


def needs_optuna(ask: Ask) -> bool:
    """Return whether Optuna answers; Random, Grid, and TPE before it has learnt need no child process.

    Importances come with an answer of Optuna, or are asked for without a trial: no draw waits for them.
    """
    if ask.numbers:
        return ask.sampler is SamplerType.TPE and learnt_from(ask, (*ask.earlier, *ask.trials)) is not None
    return sum(told.state is ToldState.COMPLETE for told in ask.trials) >= IMPORTANCE_FROM


def suggestions(ask: Ask) -> Answer:
    """Return what to try next; where Optuna answers, wait for its process. Raises SuggestionFailed."""
    if ask.sampler is SamplerType.TPE and find_spec("optuna") is None:
        raise SuggestionFailed(
            'sampler.type TPE needs Optuna, which is not installed: pip install "tunery-api[search]", or choose '
            "Random or Grid"
        )
    if not needs_optuna(ask):
        return Answer(suggestions=proposed(ask, random_draw(ask)))
    try:
        # A pool for one answer: a child that crashes or hangs costs no other question, and none stays idle.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_ask_optuna, ask, TIMEOUT_SECONDS).result()
    except BrokenProcessPool as error:
        text = f"the sampler's process was killed, or had no answer within {TIMEOUT_SECONDS} s"
        raise SuggestionFailed(text) from error
    except Exception as error:
        raise SuggestionFailed(f"the sampler failed: {type(error).__name__}: {error}"[:_MESSAGE]) from error


def _ask_optuna(ask: Ask, seconds: int) -> Answer:
    """Return Optuna's answer, in a child process without an environment; the kernel kills it after so many seconds."""
    signal.alarm(seconds)
    os.environ.clear()
    os.environ.update(dict.fromkeys(_SINGLE, "1"))
    warnings.simplefilter("ignore")
    from tunery_search.optuna_sampler import answer  # the parent never loads Optuna

    return answer(ask)
