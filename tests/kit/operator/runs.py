"""What a Job was told to do: its run.json, found the way its pod finds it."""

from __future__ import annotations

import json

from kit.operator.api import Json
from kit.operator.objects import Namespace


def files_in(job: Json) -> dict[str, str]:
    """Return what the pods of a Job find in their folder of the run, by file name."""
    template = job["spec"]["template"]
    volume = next(volume for volume in template["spec"]["volumes"] if volume["name"] == "run")
    fields = {item["path"]: item["fieldRef"]["fieldPath"] for item in volume["downwardAPI"]["items"]}
    annotations = template["metadata"]["annotations"]
    return {path: annotations[field.removeprefix("metadata.annotations['")[:-2]] for path, field in fields.items()}


def run_of(namespace: Namespace, job: str) -> Json:
    """Return the run.json of a Job."""
    run: Json = json.loads(files_in(namespace.job(job))["run.json"])
    return run
