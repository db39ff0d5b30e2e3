"""Every kind and its own steps: what a reconcile looks up by kind, and nothing else does.

What else follows from the kind stands in `tunery_api.kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunery_api.kinds import Kind
from tunery_operator.reconcile.adaptermerge import ADAPTERMERGE_STEPS
from tunery_operator.reconcile.frame import KindSteps, reconcile_object
from tunery_operator.reconcile.lorajob import LORAJOB_STEPS
from tunery_operator.reconcile.requeue import Requeue
from tunery_operator.reconcile.services import Services
from tunery_operator.views.owner import Key

STEPS: Final[Mapping[Kind, KindSteps[Any]]] = {
    Kind.LORAJOB: LORAJOB_STEPS,
    Kind.ADAPTERMERGE: ADAPTERMERGE_STEPS,
}


def reconcile(services: Services, key: Key) -> Requeue:
    """Bring one object a step further; gives the same answer however often it is asked."""
    return reconcile_object(services, key, STEPS[key.kind])
