"""What reconciles share: the store, the API server, and what this process remembers between two of them."""

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
"""When a key is to be looked at again even if nothing happens; None for never."""


@dataclass
class Context:
    """Of one process. What it remembers is lost with it, and found out again by whoever leads next."""

    store: Store
    cluster: Cluster
    settings: Settings
    enqueue: Callable[[Key], None] = lambda _key: None
    """Have a key reconciled."""
    passing: Callable[[], float] = time.monotonic
    """A clock in seconds that never goes back."""
    authority: bytes = b""
    """The authority that pods must trust when they report, as PEM; empty where reports go without TLS."""
    waits: dict[str, Mapping[Key, Wait]] = field(default_factory=dict)
    """By the name of the pool, why its jobs wait, as last decided."""
    wakeups: Wakeups = field(default_factory=Wakeups)
    """Who is to be looked at when something changes that it waits for."""
    rests_until: dict[str, float] = field(default_factory=dict)
    """By the name of the pool, until when it is not decided again, by `passing`."""

    def wait_of(self, pool: str, job: Key) -> Wait | None:
        """Why a job waits for GPUs of a pool."""
        return self.waits.get(pool, {}).get(job)

    def trust_writes(self, namespace: str) -> Writes:
        """What pods of a namespace trust; nothing where reports go without TLS."""
        return (Apply(trust(namespace, self.authority)),) if self.authority else ()


def until(when: datetime | None, now: datetime) -> Requeue:
    """How long until a moment; None for no moment."""
    return None if when is None else max(when - now, timedelta(milliseconds=100))
