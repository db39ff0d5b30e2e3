"""What is to be served: the newest of the mounted file and of what the operator answered."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pydantic import ValidationError

from tunery_api.serving import Desired

_log = logging.getLogger(__name__)


class DesiredSource:
    """The highest revision that was seen; a file that cannot be read leaves what was known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark: tuple[int, int, int] | None = None
        self.current: Desired | None = None
        """None until there was one."""
        self.problem: str | None = None
        """What is wrong with the file, in a sentence."""

    def refresh(self) -> bool:
        """Read the file if it has changed; return whether `current` is a newer one now.

        The kubelet exchanges the link that the file lies behind, so that it is always whole.
        """
        try:
            status = os.stat(self._path)
            mark = (status.st_ino, status.st_mtime_ns, status.st_size)
            if mark == self._mark:
                return False
            found = Desired.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return self._bad(f"{self._path} does not exist", None)
        except OSError as error:
            return self._bad(f"{self._path} cannot be read: {error.strerror}", None)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            return self._bad(f"{self._path}: {where}: {first['msg']}", mark)
        self._mark, self.problem = mark, None
        return self.offer(found)

    def offer(self, desired: Desired) -> bool:
        """Take `desired` if it is newer; return whether it was."""
        if self.current is not None and desired.revision <= self.current.revision:
            return False
        self.current = desired
        return True

    def _bad(self, problem: str, mark: tuple[int, int, int] | None) -> bool:
        if problem != self.problem:
            _log.warning("the list of adapters is left as it was: %s", problem)
        self._mark, self.problem = mark, problem
        return False
