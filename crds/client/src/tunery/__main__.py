"""The program `tunery`, also `kubectl tunery`."""

from __future__ import annotations

from tunery.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
