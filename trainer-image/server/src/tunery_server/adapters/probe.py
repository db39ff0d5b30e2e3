"""The probe: one request to each new version, whose answer must be numbers, and others than the base model's."""

from __future__ import annotations

from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
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
_TOP: Final = 20
"""Of how many tokens the log-probability is asked for at each position: as many as an engine tells by default."""
_ENGINES_FAULT: Final = 500
"""From this status on it is not said that it is the request's."""
_LEARNED_NOTHING: Final = retry("Train the adapter again, and publish that: its training changed no answer")
_OVERFLOWS: Final = retry(
    "Train the adapter again with a lower learning rate, and publish that: the engine cannot compute with its weights"
)
_BUSY: Final = retry("Wait if the engine was only busy: Tunery asks it again; else check its log")


class NoAnswer(TuneryError):
    """The version did not answer in time, which an engine under load may do to any: it is asked again later."""


class Probe:
    """Compares with the base model's answer, which is asked for once for each start of the engine."""

    def __init__(self, engine: Engine, served_name: str) -> None:
        self._engine = engine
        self._served_name = served_name
        self.forget()

    def forget(self) -> None:
        """Another start of the engine may compute otherwise: ask the base anew."""
        self._text, self._top = TEXT, _TOP
        self._base: list[float | None] | None = None

    @property
    def prepared(self) -> bool:
        """Whether the base has answered."""
        return self._base is not None

    async def prepare(self) -> None:
        """Have the base's answer; raises EngineGone, and EngineRefusal where the engine does not take such requests.

        An engine with a lower --max-logprobs is asked for fewer; a model with a short context takes a part of the text.
        """
        while self._base is None:
            try:
                self._base = await self._engine.logprobs(self._served_name, self._text, self._top)
            except EngineRefusal:
                words = self._text.split()
                if self._top > 1:
                    self._top //= 4
                elif len(words) // 2 >= _FEWEST_WORDS:
                    self._text, self._top = " ".join(words[: len(words) // 2]), _TOP
                else:
                    raise

    async def check(self, engine_name: str) -> None:
        """Ask one version; raises TuneryError(ProbeFailed) and EngineGone."""
        await self.prepare()
        try:
            found = await self._engine.logprobs(engine_name, self._text, self._top)
        except EngineGone as error:
            if not error.hangs:
                raise
            message = f"it did not answer within {PROBE_SECONDS:.0f} s; it is tried again every five minutes"
            raise NoAnswer(FailureReason.PROBE_FAILED, message, _BUSY) from error
        except EngineRefusal as error:
            if error.status >= _ENGINES_FAULT:
                message = f"the engine could not answer with it: {error.words}; it is tried again every five minutes"
                raise NoAnswer(FailureReason.PROBE_FAILED, message, _BUSY) from error
            what = "the engine took the request for the base model, and refuses it with this adapter, as it does where"
            raise NoNumbers(f"{what} its answer is no numbers (NaN): {error.words}") from error
        nothing = sum(value is None for value in found)
        if nothing:
            raise NoNumbers(f"{nothing} of {len(found)} log-probabilities of its answer are no numbers")
        if found == self._base:
            message = f"it answers exactly as the base model, in each of {len(found)} numbers"
            raise TuneryError(FailureReason.PROBE_FAILED, message, _LEARNED_NOTHING)

    async def base_is_sound(self) -> bool:
        """Tell whether the base still answers with numbers; raises EngineGone.

        What an engine keeps of an answer of NaN spoils others that are shorter.
        """
        words = self._text.split()
        try:
            found = await self._engine.logprobs(self._served_name, " ".join(words[: len(words) // 4] or words), 1)
        except EngineRefusal:
            return False
        return None not in found


class NoNumbers(TuneryError):
    """The version's answer is NaN, or infinite."""

    def __init__(self, message: str) -> None:
        super().__init__(FailureReason.PROBE_FAILED, message, _OVERFLOWS)
