"""The plan of a package: what a stranger sees at its top, and how the rooms know each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rooms.imports import Package, Stand

Arrow = tuple[str, str]
"""From the room that imports to the room that it imports."""


@dataclass(frozen=True)
class House:
    """A package's figures; none may rise."""

    rooms: tuple[str, ...]
    """The entries of the package's folder."""
    floors: tuple[tuple[str, ...], ...]
    """From the bottom: each room as low as what it imports allows."""
    arrows: Mapping[Arrow, int]
    """The imports between two rooms."""
    against: tuple[Arrow, ...]
    """The arrows that must be cut until no circle is left: each time the weakest of a circle."""
    circles: tuple[tuple[str, ...], ...]
    late: Mapping[Arrow, int]
    """The imports within functions, from a room to a room (its own, too) or a library."""
    type_checking: int

    def figures(self) -> dict[str, int]:
        """Return what has a ceiling."""
        return {
            "rooms": len(self.rooms),
            "floors": len(self.floors),
            "arrows": len(self.arrows),
            "against": len(self.against),
            "circles": len(self.circles),
            "late_imports": sum(self.late.values()),
            "type_checking": self.type_checking,
        }


def survey(package: Package) -> House:
    """Draw the plan of a package from its imports."""
    rooms = tuple(sorted({_room(module) for module in package.modules} - {"__init__"}))
    arrows: Counter[Arrow] = Counter()
    late: Counter[Arrow] = Counter()
    for found in package.imports:
        source, inside = _room(found.source), found.target.startswith(".")
        target = _room(found.target[1:]) if inside else found.target
        if inside and source != target and {source, target} <= set(rooms):
            arrows[source, target] += 1
        if found.stand == Stand.LATE:
            late[source, target] += 1
    against = _against(rooms, arrows)
    return House(
        rooms=rooms,
        floors=_floors(rooms, set(arrows) - set(against)),
        arrows=arrows,
        against=against,
        circles=_circles(rooms, set(arrows)),
        late=late,
        type_checking=package.type_checking,
    )


def _room(module: str) -> str:
    return module.partition(".")[0] or "__init__"


def _reached(start: str, arrows: set[Arrow]) -> set[str]:
    """Return the rooms that one comes to from `start` by at least one arrow."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        here = waiting.pop()
        ahead = {target for source, target in arrows if source == here} - reached
        reached |= ahead
        waiting.extend(ahead)
    return reached


def _circles(rooms: tuple[str, ...], arrows: set[Arrow]) -> tuple[tuple[str, ...], ...]:
    reached = {room: _reached(room, arrows) for room in rooms}
    found = {tuple(other for other in rooms if other in reached[room] and room in reached[other]) for room in rooms}
    return tuple(sorted(circle for circle in found if circle))


def _against(rooms: tuple[str, ...], arrows: Mapping[Arrow, int]) -> tuple[Arrow, ...]:
    left, cut = dict(arrows), []
    while circles := _circles(rooms, set(left)):
        inner = [arrow for arrow in left if any(set(arrow) <= set(circle) for circle in circles)]
        weakest = min(inner, key=lambda arrow: (left[arrow], arrow))
        cut.append(weakest)
        del left[weakest]
    return tuple(cut)


def _floors(rooms: tuple[str, ...], arrows: set[Arrow]) -> tuple[tuple[str, ...], ...]:
    floors: list[tuple[str, ...]] = []
    above = set(rooms)
    while above:
        floor = tuple(sorted(room for room in above if not any((room, other) in arrows for other in above)))
        floors.append(floor)
        above -= set(floor)
    return tuple(floors)
