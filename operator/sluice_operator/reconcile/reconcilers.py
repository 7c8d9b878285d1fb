"""Which function reconciles which kind of object?"""

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any

from sluice_operator.observe.views import Key
from sluice_operator.reconcile.adapter import reconcile_adapter
from sluice_operator.reconcile.context import Context, Requeue
from sluice_operator.reconcile.engine import reconcile_engine
from sluice_operator.reconcile.fence import reconcile_node
from sluice_operator.reconcile.job import reconcile_job
from sluice_operator.reconcile.pool import reconcile_pool

RECONCILERS: Mapping[str, Callable[[Key, Context, datetime], Coroutine[Any, Any, Requeue]]] = {
    "FineTuneJob": reconcile_job,
    "InferenceEngine": reconcile_engine,
    "Adapter": reconcile_adapter,
    "GPUPool": reconcile_pool,
    "Node": reconcile_node,
}
