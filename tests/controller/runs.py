"""What a Job was told to do: its run.json, found the way its pod finds it."""

from __future__ import annotations

import json

from controller.api import Json, eventually
from controller.objects import Namespace


def config_name(job: Json) -> str:
    """Return the name of the ConfigMap that a Job's pods mount."""
    volumes = job["spec"]["template"]["spec"]["volumes"]
    name: str = next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "run")
    return name


def run_of(namespace: Namespace, job: str) -> Json:
    """Return the run.json of a Job."""
    name = config_name(namespace.job(job))
    config = eventually(f"ConfigMap {name}", lambda: namespace.get("configmaps", name))
    run: Json = json.loads(config["data"]["run.json"])
    return run
