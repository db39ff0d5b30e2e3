"""Every metric of the operator, once; names and units as Prometheus expects them, no name of an object in any label."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

# The operator itself

API_REQUESTS: Final = Counter(
    "tunery_api_requests",
    "Requests to the API server, by verb, resource and HTTP status (0: no answer).",
    ["verb", "resource", "code"],
)
