"""The ConfigMap with run.json, and the certificate that progress is reported under."""

from __future__ import annotations

import json
from typing import Any, Final

from tunery_api.names import RUN_FILE
from tunery_operator.manifests.metadata import metadata
from tunery_operator.plan.model import JobPlan

CA_FILE: Final = "progress-ca.crt"


def build_config_map(plan: JobPlan) -> dict[str, Any]:
    """Return the ConfigMap of a Job; immutable, so that it never changes under a running pod."""
    data = {RUN_FILE: json.dumps(plan.run.to_json_dict(), indent=1, sort_keys=True)}
    if plan.progress is not None:
        data[CA_FILE] = plan.progress.ca_pem
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(plan, plan.config_name),
        "immutable": True,
        "data": data,
    }
