"""The command line and the Python client of Tunery.

    from tunery import Client

    job = Client().submit(model="hf://Qwen/Qwen3-8B", data="s3://data/support.jsonl", gpus=1)
    job.wait("2h").raise_for_failure()

What this module exports is imported when it is used, so that the command line starts fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunery.client import Client, Job
    from tunery.errors import NotFound, Stopped, TimedOut, TuneryError, UsageError

__all__ = ["Client", "Job", "NotFound", "Stopped", "TimedOut", "TuneryError", "UsageError"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("Client", "Job"):
        from tunery import client

        return getattr(client, name)
    from tunery import errors

    return getattr(errors, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
