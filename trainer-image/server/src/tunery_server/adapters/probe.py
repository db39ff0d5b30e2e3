"""The probe: one request to each new version, whose answer must be numbers, and others than the base model's."""

from __future__ import annotations

from typing import Final

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_server.engine import PROBE_SECONDS, Engine, EngineGone, EngineRefusal

TEXT: Final = (
    "The answer to a short question should be clear. First say what is known, then what follows from it, and at last "
    "what to do. A list of three items: apples, pears and bread. The price of each is 2.50, so that all of them cost "
    "7.50 in total. Write a letter to the customer, thank them for the order, and tell them when it will arrive. "
    "def add(a, b): return a + b. Yesterday it rained in the north; tomorrow the sun may shine. Who wrote this, and "
    "why does it matter? Because a careful reader can tell one voice from another."
)
"""Words of many kinds, more than 64 tokens for every tokenizer."""
_FEWEST_WORDS: Final = 8
_ENGINES_FAULT: Final = 500
"""From this status on it is not said that it is the request's."""
_LEARNED_NOTHING: Final = (
    "Look at the adapter: training has changed nothing that the engine answers with; train it again and publish that."
)


class NoAnswer(TuneryError):
    """The version did not answer in time, which an engine under load may do to any: it is asked again later."""


class Probe:
    """Compares with the base model's answer, which is asked for once for each start of the engine."""

    def __init__(self, engine: Engine, served_name: str) -> None:
        self._engine = engine
        self._served_name = served_name
        self._text = TEXT
        self._base: list[float | None] | None = None

    def forget(self) -> None:
        """Another start of the engine may compute otherwise: ask the base anew."""
        self._text, self._base = TEXT, None

    async def prepare(self) -> None:
        """Have the base's answer; raises EngineGone, and EngineRefusal where the engine does not take such requests.

        A model with a short context takes a part of the text.
        """
        while self._base is None:
            try:
                self._base = await self._engine.prompt_logprobs(self._served_name, self._text)
            except EngineRefusal:
                words = self._text.split()
                if len(words) // 2 < _FEWEST_WORDS:
                    raise
                self._text = " ".join(words[: len(words) // 2])

    async def check(self, engine_name: str) -> None:
        """Ask one version; raises TuneryError(ProbeFailed) and EngineGone."""
        await self.prepare()
        try:
            found = await self._engine.prompt_logprobs(engine_name, self._text)
        except EngineGone as error:
            if not error.hangs:
                raise
            message = f"it did not answer within {PROBE_SECONDS:.0f} s; it is tried again every five minutes"
            raise NoAnswer(FailureReason.PROBE_FAILED, message) from error
        except EngineRefusal as error:
            if error.status >= _ENGINES_FAULT:
                message = f"the engine could not answer with it: {error.words}; it is tried again every five minutes"
                raise NoAnswer(FailureReason.PROBE_FAILED, message) from error
            raise _failed(f"the engine could not answer with it: {error.words}") from error
        nothing = sum(value is None for value in found)
        if nothing:
            raise _failed(f"{nothing} of {len(found)} log-probabilities of its answer are no numbers")
        if found == self._base:
            raise _failed(f"it answers exactly as the base model, in each of {len(found)} tokens", _LEARNED_NOTHING)


def _failed(message: str, hint: str | None = None) -> TuneryError:
    return TuneryError(FailureReason.PROBE_FAILED, message, hint)
