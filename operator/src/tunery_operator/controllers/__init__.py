"""Provide `reconcile`, which reconciles an object of any kind.

`tunery_api.kinds` has all else that depends on the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from tunery_api.kinds import Kind
from tunery_operator.controllers.adaptermerge import ADAPTERMERGE_STEPS
from tunery_operator.controllers.adapterserver import reconcile_server
from tunery_operator.controllers.batchinference import BATCHINFERENCE_STEPS
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.lorajob import LORAJOB_STEPS
from tunery_operator.controllers.lorasweep import LORASWEEP_STEPS
from tunery_operator.controllers.reconciler import reconcile_job
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime.workqueue import Requeue

RECONCILERS: Final[Mapping[Kind, Callable[[ReconcileContext, Key], Requeue]]] = {
    Kind.LORAJOB: partial(reconcile_job, steps=LORAJOB_STEPS),
    Kind.ADAPTERMERGE: partial(reconcile_job, steps=ADAPTERMERGE_STEPS),
    Kind.ADAPTERSERVER: reconcile_server,
    Kind.BATCHINFERENCE: partial(reconcile_job, steps=BATCHINFERENCE_STEPS),
    Kind.LORASWEEP: partial(reconcile_job, steps=LORASWEEP_STEPS),
}


def reconcile(context: ReconcileContext, key: Key) -> Requeue:
    """Reconcile one object, and return when to reconcile it again, and which other keys to reconcile; idempotent."""
    requeue = RECONCILERS[key.kind](context, key)
    keys = context.cache.drain_keys()
    return replace(requeue, wake=requeue.wake | keys) if keys else requeue
