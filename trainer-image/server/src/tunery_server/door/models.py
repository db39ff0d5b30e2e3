"""GET /v1/models: what can be asked for, in OpenAI's form."""

from __future__ import annotations

import time
from typing import Final

from tunery_server.routes import Routes, Target

_STARTED: Final = int(time.time())


def model(target: Target, base: str) -> dict[str, object]:
    """Return one model; `root` is the version that answers."""
    return {
        "id": target.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "tunery",
        "root": target.engine_name,
        "parent": None if target.version is None else base,
    }


def models(routes: Routes) -> dict[str, object]:
    """Return all models, the base first."""
    targets = [routes.resolve(name) for name in routes.names()]
    return {"object": "list", "data": [model(target, targets[0].name) for target in targets]}
