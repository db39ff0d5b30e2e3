"""Match regular expressions of a stranger against names, in a process of its own, which can be ended in the middle.

Run as a file, without site-packages: it imports nothing but Python's own library. Reads JSON from its input, an object
with `patterns` (pairs of a way of `re` and a pattern) and `names`; says the index of each pattern before it is matched.
"""

from __future__ import annotations

import json
import re
import sys


def main() -> None:
    """Match each pattern against each name."""
    asked = json.load(sys.stdin)
    for index, (way, pattern) in enumerate(asked["patterns"]):
        print(index, flush=True)
        match = getattr(re.compile(pattern), way)
        for name in asked["names"]:
            match(name)


if __name__ == "__main__":
    main()
