"""Watches of the API server: what changes is sent, so that no test asks again and again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

from kit.operator.api import Api, Json

T = TypeVar("T")


def watch(api: Api, path: str, selector: str, seconds: float) -> Iterator[tuple[str, Json]]:
    """Yield the type and the object of each event of a collection; what exists already comes first, as ADDED.

    `selector` is a parameter of the query, such as `fieldSelector=metadata.name%3Da`. Ends after `seconds`.
    """
    query = f"{path}?watch=1&{selector}&timeoutSeconds={max(1, round(seconds))}"
    with closing(api.stream(query)) as answer:
        for line in answer:
            event = json.loads(line)
            yield event["type"], event["object"]


def wait_for_object(api: Api, path: str, check: Callable[[Json], T | None], seconds: float) -> T | None:
    """Return the first true answer of `check`, which is given each state of the object at `path`; None: too late."""
    collection, _, name = path.rpartition("/")
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for type_, found in watch(api, collection, f"fieldSelector=metadata.name%3D{name}", left):
            answer = check(found) if type_ in ("ADDED", "MODIFIED") else None
            if answer:
                return answer
    return None
