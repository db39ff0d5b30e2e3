"""What goes wrong while watching: all of it is survived."""

from __future__ import annotations

from typing import Any, Final

GONE: Final = "410"
"""The API server does not know the version any more that the watch, or the list, was to go on from."""
CUT: Final = "cut"
"""The connection ended in the middle of something."""
SILENT: Final = "silent"
"""The connection is open, and nothing comes, not even a bookmark."""
UNREACHABLE: Final = "unreachable"
DISORDER: Final = "disorder"
"""Events came in an order that an API server does not send them in."""
UNREADABLE: Final = "unreadable"


class WatchFailure(Exception):
    """A list or watch that did not work; `code` is the HTTP status, or one of the words above."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        self.code = code
        self.retry_after = retry_after
        """Seconds that the API server asks to wait for."""
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.code} {self.args[0]}".strip()

    @property
    def needs_list(self) -> bool:
        """Tell whether going on from the last version cannot help: everything is to be listed anew."""
        return self.code in (GONE, "404", DISORDER, UNREADABLE)

    @property
    def doubts_version(self) -> bool:
        """Tell whether the reason may lie in the version that was asked for."""
        return self.code.isdigit() and self.code not in ("401", "429", "503")

    @property
    def is_usual(self) -> bool:
        """Tell whether it happens in a cluster that is well: it is no trouble if the next try works."""
        return self.code in (GONE, CUT, SILENT, DISORDER)


def refusal(status: dict[str, Any], code: int | None = None, retry_after: float | None = None) -> WatchFailure:
    """Return the failure that a Status object of the API server tells of."""
    number = code if code is not None else int(status.get("code") or 500)
    message = str(status.get("message") or status.get("reason") or "")
    return WatchFailure(str(number), message[:500], retry_after)
