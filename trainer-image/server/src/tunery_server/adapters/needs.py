"""What versions are needed for: routes, places and the engine."""

from __future__ import annotations

from tunery_api.serving import VERSION_DIGITS
from tunery_server.adapters.places import Places
from tunery_server.adapters.residents import Residents


class Needs:
    """Answers by what is so now; asked from threads, too."""

    def __init__(self, residents: Residents, places: Places) -> None:
        self._residents = residents
        self._places = places

    def routed(self) -> set[str]:
        """Return the engine's names for what names lead to."""
        return {slot.served.engine_name for slot in list(self._places.hot.values()) if slot.served}

    def lost(self) -> bool:
        """Tell whether the engine does not hold what is routed to."""
        return bool(self.routed() - self._residents.registered)

    def held(self, sha256: str) -> bool:
        """Tell whether the engine may read a version's folder."""
        names = (*self._residents.registered, self._residents.trying or "")
        return any(name.endswith(f"@{sha256[:VERSION_DIGITS]}") for name in names)

    def wanted(self) -> set[str]:
        """Return the versions that names with a place, or that wait for one, lead to, or are to lead to."""
        return self._places.needed()
