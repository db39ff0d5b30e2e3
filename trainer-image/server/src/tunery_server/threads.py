"""Work that blocks, in threads that nobody waits for at the end: a store that hangs must not hold the process."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

_LOOK_SECONDS: Final = 0.2

Result = TypeVar("Result")


async def in_thread(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise what it raises; whoever is cancelled meanwhile leaves it to itself.

    asyncio's own threads are few, and the process waits for them when it ends.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(act: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(lambda: None if done.done() else act())
        except RuntimeError:
            return  # the loop has ended

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 (whoever waits must learn of it)
            failure = error
            tell(lambda: done.set_exception(failure))
        else:
            tell(lambda: done.set_result(result))

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), daemon=True, name="blocking").start()
    return await done


async def in_thread_until(work: Callable[[], Result], until: Callable[[], float]) -> Result:
    """Do the same, but raise TimeoutError once it is `until`, by time.monotonic: it may come nearer meanwhile.

    The work is begun in any case, and has a moment.
    """
    doing = asyncio.create_task(in_thread(work))
    try:
        while True:
            await asyncio.wait({doing}, timeout=_LOOK_SECONDS)
            if doing.done():
                return doing.result()
            if time.monotonic() >= until():
                raise TimeoutError("it was not done in time")
    finally:
        doing.cancel()
