"""`python -m rooms [package …]`: print how the packages are built; --check, --lower and --write mind what stands."""

from __future__ import annotations

import argparse
import sys

from projects import PROJECTS, ROOT
from rooms import ceilings
from rooms.house import House, survey
from rooms.imports import read_package
from rooms.index import index

PACKAGES = {project.package: project.source for project in PROJECTS}

TEMPLATES = ROOT / "charts" / "tunery" / "templates"
INDEX = ROOT / "docs" / "files.md"


def main(arguments: list[str]) -> int:
    """Print the houses, or check or lower their ceilings; return 1 where one does not keep to its own."""
    options = _options(arguments)
    written = index(PACKAGES, TEMPLATES)
    if options.write:
        INDEX.write_text(written)
        return 0
    houses = {name: survey(read_package(PACKAGES[name])) for name in options.packages or PACKAGES}
    held = ceilings.read()
    if options.lower:
        ceilings.write(held | {name: ceilings.lowered(house, held[name]) for name, house in houses.items()})
        held = ceilings.read()
    if not (options.check or options.lower):
        print("\n\n".join(_plan(name, house) for name, house in houses.items()))
        return 0
    print(_table(houses))
    found = [problem for name, house in houses.items() for problem in ceilings.problems(name, house, held[name])]
    if INDEX.read_text() != written:
        found.append(f"{INDEX.relative_to(ROOT)} is not what the files say of themselves: run make generate")
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rooms", description=__doc__)
    parser.add_argument("packages", nargs="*", help=", ".join(PACKAGES))
    parser.add_argument("--check", action="store_true", help="compare with ceilings.toml, and the index with the files")
    parser.add_argument("--write", action="store_true", help=f"write {INDEX.relative_to(ROOT)}")
    parser.add_argument("--lower", action="store_true", help="write what has fallen into ceilings.toml, then check")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.packages) - set(PACKAGES)):
        parser.error(f"no package {', '.join(unknown)}; there are {', '.join(PACKAGES)}")
    return options


def _table(houses: dict[str, House]) -> str:
    names = list(next(iter(houses.values())).figures())
    rows = [["", *names], *([name, *map(str, house.figures().values())] for name, house in houses.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines)


def _plan(name: str, house: House) -> str:
    knows = {room: sorted(target for source, target in house.arrows if source == room) for room in house.rooms}
    lines = [_table({name: house}), "", "floors, from the top, and what each room imports"]
    for number, floor in reversed(list(enumerate(house.floors, 1))):
        lines += [f"  {number:2}  {room}: {' '.join(knows[room]) or '-'}" for room in floor]
    lines += [f"against the floors: {source} -> {target}" for source, target in house.against]
    lines += [f"circle: {' '.join(circle)}" for circle in house.circles]
    lines += [f"late: {source} -> {target} ({count})" for (source, target), count in sorted(house.late.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
