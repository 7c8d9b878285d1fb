"""Full lists: pages of one moment, of which only what is not held already is read."""

from typing import Any

import pytest
import yaml

from sluice_api.quantity import amount
from sluice_operator.cluster import lists
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.lists import refresh
from sluice_operator.observe.parse import parse
from sluice_operator.observe.store import Store
from sluice_operator.observe.world import job_key
from tests.unit.chart.helm import CHART
from tests.unit.operator.bodies import Body, finetunejob


class PagedServer:
    """An API server of jobs that sends two of them at a time, at one version of the whole."""

    def __init__(self, version: int, *jobs: Body) -> None:
        self.version = version
        self.jobs = jobs
        self.expires: list[int] = []
        """Offsets of pages that come too late, once each."""

    async def request(self, _method: str, _path: str, query: dict[str, str]) -> Body:
        start = int(query.get("continue", 0))
        if start in self.expires:
            self.expires.remove(start)
            raise ApiError(410, "Expired", "too old")
        more = {"continue": str(start + 2)} if start + 2 < len(self.jobs) else {}
        return {"items": self.jobs[start : start + 2], "metadata": {"resourceVersion": str(self.version), **more}}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the objects that were read."""
    names: list[str] = []

    def noted(kind: str, body: Body) -> Any:
        names.append(body["metadata"]["name"])
        return parse(kind, body)

    monkeypatch.setattr(lists, "parse", noted)
    return names


async def test_list_does_not_read_unchanged_objects_again(read: list[str]) -> None:
    store = Store()
    await refresh(PagedServer(9, *(finetunejob(name, 1) for name in "abcde")), store, "FineTuneJob")  # type: ignore[arg-type]
    assert read == [*"abcde"]
    held = store.world().jobs[job_key("team", "a")]
    others = finetunejob("a", 1), finetunejob("b", 7), finetunejob("c", 8, uid="another")
    await refresh(PagedServer(10, *others), store, "FineTuneJob")  # type: ignore[arg-type]
    assert read[5:] == ["b", "c"]
    jobs = store.world().jobs
    versions = {key.name: job.metadata.resource_version for key, job in jobs.items()}
    assert versions == {"a": "1", "b": "7", "c": "8"}
    assert jobs[job_key("team", "a")] is held


async def test_list_of_a_restored_backup_reads_every_object(read: list[str]) -> None:
    """etcd was restored from a backup: an equal version may be another state."""
    store = Store()
    await refresh(PagedServer(9, finetunejob("a", 8)), store, "FineTuneJob")  # type: ignore[arg-type]
    await refresh(PagedServer(8, finetunejob("a", 8, pool="another")), store, "FineTuneJob")  # type: ignore[arg-type]
    assert read == ["a", "a"]
    assert store.world().jobs[job_key("team", "a")].spec.resources.pool == "another"


async def test_list_that_expires_begins_anew() -> None:
    store, server = Store(), PagedServer(9, *(finetunejob(name, 1) for name in "abcde"))
    server.expires = [2, 4]
    await refresh(server, store, "FineTuneJob")  # type: ignore[arg-type]
    assert {key.name for key in store.world().jobs} == {*"abcde"}


def test_list_pages_of_the_largest_pods_fit_into_memory() -> None:
    """kopf's list and ours at once, of pods of 1.5 MB, each byte of which is six in JSON; and 250 MiB for all else."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    most = amount("memory", values["resources"]["limits"]["memory"]) - 250 * 2**20
    in_json, while_read = 6 * 1_500_000, 3
    assert 2 * lists.PAGE * in_json * while_read < most
