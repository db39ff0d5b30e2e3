"""Names that lead to adapters: which target of an alias answers a request."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Collection

from tunery_api.adapterserver import Alias


def pick(alias: Alias, user: str | None, usable: Callable[[str], bool], without: Collection[str] = ()) -> str | None:
    """Return the target that answers: by weight, and always the same for one `user`; None where none can.

    The share of a target that is not usable goes to the others, by their weights. For a user the highest of as many
    draws as there are targets decides (rendezvous hashing): a change of weights, or a target that is not usable for a
    while, moves no more users than it must, and all replicas decide alike.
    """
    able = [each for each in alias.targets if each.weight and each.adapter not in without and usable(each.adapter)]
    if not able:
        return None
    if user is None:
        return random.choices(able, [each.weight for each in able])[0].adapter  # noqa: S311 - nothing is kept secret
    return max(able, key=lambda each: each.weight / -math.log(_draw(alias.name, each.adapter, user))).adapter


def _draw(*parts: str) -> float:
    """Return a number between 0 and 1 that only the parts decide."""
    words = "\0".join(parts).encode(errors="surrogatepass")
    number = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") >> 12
    return (number + 0.5) / 2.0**52
