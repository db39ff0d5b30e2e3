"""What a package's figures are held to: ceilings.toml, beside this file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rooms.house import House

CEILINGS = Path(__file__).with_name("ceilings.toml")
_HEAD = """\
# What `python -m rooms --check` holds each package to. A figure may fall, and then its ceiling is lowered
# (`python -m rooms --lower`); it never rises. A door is a pair of rooms, or a room and a library, between which
# imports within functions may stand.
"""


@dataclass(frozen=True)
class Ceiling:
    """The highest figures of a package, by name, and its doors."""

    figures: Mapping[str, int]
    doors: frozenset[str]


def doors(house: House) -> frozenset[str]:
    """Return the pairs between which there are late imports, as ceilings.toml writes them."""
    return frozenset(f"{source} -> {target}" for source, target in house.late)


def read(path: Path = CEILINGS) -> dict[str, Ceiling]:
    """Return the ceilings of each package."""
    written = tomllib.loads(path.read_text())
    return {
        package: Ceiling({name: value for name, value in table.items() if name != "doors"}, frozenset(table["doors"]))
        for package, table in written.items()
    }


def problems(name: str, house: House, ceiling: Ceiling) -> Iterator[str]:
    """Yield what has risen and what has fallen, each as a sentence."""
    for figure, value in house.figures().items():
        highest = ceiling.figures[figure]
        if value > highest:
            yield f"{name}: {figure} is {value}, may be at most {highest}"
        elif value < highest:
            yield f"{name}: {figure} has fallen from {highest} to {value}: lower its ceiling (python -m rooms --lower)"
    for door in sorted(doors(house) - ceiling.doors):
        yield f"{name}: {door} is no door: import at the top of the file, or hand in what is needed"
    for door in sorted(ceiling.doors - doors(house)):
        yield f"{name}: the door {door} is used no more: take it out (python -m rooms --lower)"


def lowered(house: House, ceiling: Ceiling) -> Ceiling:
    """Return the ceiling with what has fallen; nothing of it rises."""
    figures = {name: min(value, ceiling.figures[name]) for name, value in house.figures().items()}
    return Ceiling(figures, ceiling.doors & doors(house))


def write(ceilings: Mapping[str, Ceiling], path: Path = CEILINGS) -> None:
    """Write the ceilings of each package."""
    path.write_text("\n".join([_HEAD, *(_table(name, ceiling) for name, ceiling in ceilings.items())]))


def _table(package: str, ceiling: Ceiling) -> str:
    figures = "".join(f"{name} = {value}\n" for name, value in ceiling.figures.items())
    listed = "".join(f'    "{door}",\n' for door in sorted(ceiling.doors))
    return f"[{package}]\n{figures}doors = [\n{listed}]\n" if listed else f"[{package}]\n{figures}doors = []\n"
