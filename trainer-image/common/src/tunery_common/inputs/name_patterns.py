"""The regular expressions that PEFT is given: whether they are some, and come to an end on modules' names.

Python's `re` cannot be given a limit, and PEFT matches them with nothing else: they are tried beforehand in a process
that can be ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

SECONDS: float = 20.0
"""How long all patterns of a configuration may take on all names; an honest one takes milliseconds."""
_TRIAL: Final = Path(__file__).with_name("pattern_trial.py")
_NAME: Final = re.compile(r"[\w.-]*")
"""What matches in one pass, whatever the names."""
_FEW: Final = 1000
"""So many plain names are matched in no time."""
_SHOWN: Final = 100


class _Pattern(NamedTuple):
    field: str
    said: str
    way: str
    """The function of `re` that PEFT calls."""
    form: str
    """What it calls it with."""

    @property
    def label(self) -> str:
        return f"{self.field}: {self.said[:_SHOWN]!r}"


def broken_pattern(config: Mapping[str, Any]) -> str | None:
    """Return what is no regular expression where PEFT reads one, `field: 'pattern' is no …`, or None."""
    return _broken(_patterns(config))


def slow_pattern(config: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Return which pattern takes too long on these names of modules, `field: 'pattern' takes …`, or None.

    `config` is one in which `broken_pattern` finds nothing.
    """
    return _slow(list(_patterns(config)), names)


def unusable_key(field: str, keys: Iterable[str], names: Iterable[str]) -> str | None:
    """Return which key of a rank or alpha pattern is no regular expression or takes too long, as those two do."""
    patterns = list(_keys(field, keys))
    return _broken(patterns) or _slow(patterns, names)


def _broken(patterns: Iterable[_Pattern]) -> str | None:
    for pattern in patterns:
        try:
            re.compile(pattern.form)
        except (re.error, RecursionError, OverflowError) as error:
            return f"{pattern.label} is no regular expression: {error}"
    return None


def _slow(patterns: Sequence[_Pattern], names: Iterable[str]) -> str | None:
    if len(patterns) <= _FEW and all(_NAME.fullmatch(pattern.said) for pattern in patterns):
        return None
    asked = {"patterns": [(pattern.way, pattern.form) for pattern in patterns], "names": list(names)}
    command = [sys.executable, "-I", "-S", str(_TRIAL)]
    try:
        done = subprocess.run(
            command, check=False, input=json.dumps(asked).encode(), capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        reached, ended = error.stdout or b"", False
    else:
        reached, ended = done.stdout, done.returncode == 0
    if ended:
        return None
    at = int(reached.split()[-1]) if reached.split() else 0
    return f"{patterns[at].label} takes too long on the names of modules; write it without repeats within repeats"


def parents(name: str) -> list[str]:
    """Return the paths of all modules that `name` stands in, and itself: `a.b.c` is in `a.b` and `a`."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _patterns(config: Mapping[str, Any]) -> Iterator[_Pattern]:
    """Yield each pattern in the form that PEFT gives it."""
    for field in ("target_modules", "exclude_modules", "feedforward_modules"):
        said = config.get(field)
        if isinstance(said, str):
            yield _Pattern(field, said, "fullmatch", said)
    for said in _listed(config.get("modules_to_save")):
        yield _Pattern("modules_to_save", said, "match", rf"(^|.*\.){said}($|\..*)")
    for said in _listed(config.get("layers_pattern")):
        yield _Pattern("layers_pattern", said, "match", rf"(?:^|.*?\.){said}\.(?P<idx>\d+)\.")
    for field in ("rank_pattern", "alpha_pattern"):
        yield from _keys(field, config.get(field) or ())


def _keys(field: str, keys: Iterable[Any]) -> Iterator[_Pattern]:
    for said in keys:
        yield _Pattern(field, str(said), "match", rf"(.*\.)?({said})$")


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value or ()]
