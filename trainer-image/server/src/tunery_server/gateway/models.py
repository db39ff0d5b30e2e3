"""GET /v1/models: what can be asked for, in OpenAI's form."""

from __future__ import annotations

import time
from typing import Final

from tunery_api.adapterserver import Alias
from tunery_server.gateway.errors import look_whether_open, not_allowed
from tunery_server.routes import Routes

_STARTED: Final = int(time.time())


def model(routes: Routes, name: str) -> dict[str, object]:
    """Return one model; `root` is the version that answers, for an alias what it leads to if that is one only.

    Raises UnknownModel, and NotServed.
    """
    alias = routes.alias(name)
    base = routes.base
    if alias is not None:
        return _told(name, _only_target(routes, alias), base)
    target = routes.look(name)
    return _told(target.name, target.engine_name, None if target.version is None else base)


def _only_target(routes: Routes, alias: Alias) -> str:
    able = [each.adapter for each in alias.targets if each.weight and routes.usable(each.adapter)]
    if not able:
        raise routes.no_target(alias)
    return routes.look(able[0]).engine_name if len(able) == 1 else alias.name


def _told(name: str, root: str, parent: str | None) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "tunery",
        "root": root,
        "parent": parent,
    }


def models(routes: Routes, client: str) -> dict[str, object]:
    """Return all models that the client may ask for, the base first, the aliases at the end; raises Refusal."""
    look_whether_open(routes)
    return {"object": "list", "data": [model(routes, name) for name in routes.names_for(client)]}


def one_model(routes: Routes, client: str, name: str) -> dict[str, object]:
    """Return one model; raises Refusal where the client may not ask for it, UnknownModel and NotServed."""
    look_whether_open(routes)
    if not routes.allows(client, name):
        raise not_allowed()
    return model(routes, name)
