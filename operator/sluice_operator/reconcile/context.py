"""What reconciles share: the store, the API server, and what this process remembers between two reconciles."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sluice_operator.cluster.cluster import Cluster
from sluice_operator.manifests.trust import trust
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.plan.obstacle import Wait
from sluice_operator.reconcile.wakeups import Wakeups
from sluice_operator.settings import Settings
from sluice_operator.writes import Apply, Writes

Requeue = timedelta | None
"""After how long a key is looked at again even if nothing happens; None for never."""


@dataclass
class Context:
    """Belongs to one process. What it remembers is lost with the process, and the next leader finds it out again."""

    store: Store
    cluster: Cluster
    settings: Settings
    enqueue: Callable[[Key], None] = lambda _key: None
    """Have a key reconciled soon."""
    passing: Callable[[], float] = time.monotonic
    """A clock in seconds that never goes back."""
    authority: bytes = b""
    """The certificate authority, as PEM, that pods trust when they report; empty where reports go without TLS."""
    waits: dict[str, Mapping[Key, Wait]] = field(default_factory=dict)
    """By pool, why its jobs wait, as last decided."""
    wakeups: Wakeups = field(default_factory=Wakeups)
    """Who is reconciled when an object changes."""
    rests_until: dict[str, float] = field(default_factory=dict)
    """By pool, the moment of `passing` before which the pool is not decided again."""

    def wait_of(self, pool: str, job: Key) -> Wait | None:
        """Why a job waits for GPUs of a pool; None if it does not."""
        return self.waits.get(pool, {}).get(job)

    def trust_writes(self, namespace: str) -> Writes:
        """Writes by which pods of a namespace trust the operator's certificate; none where reports go without TLS."""
        return (Apply(trust(namespace, self.authority)),) if self.authority else ()


def until(when: datetime | None, now: datetime) -> Requeue:
    """How long until a moment, at least 0.1 s; None for no moment."""
    return None if when is None else max(when - now, timedelta(milliseconds=100))
