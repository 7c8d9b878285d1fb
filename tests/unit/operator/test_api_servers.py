"""Where pods reach the API server: its Service and what is behind it."""

from typing import Any

import pytest

from dev.simulate.builder import WorldBuilder
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.lists import look_for_api_servers
from sluice_operator.handlers.resync import Resync
from sluice_operator.observe.views import Address, Key

Body = dict[str, Any]
TWO = {"endpoints": [{"addresses": ["10.0.7.5"]}, {"addresses": ["10.0.7.4"]}], "ports": [{"port": 6443}]}


class ApiServer:
    """One that knows its own EndpointSlice."""

    def __init__(self, answer: Body | ApiError) -> None:
        self.answer = answer

    async def request(self, method: str, path: str, **_: Any) -> Body:
        assert (method, path) == ("GET", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        if isinstance(self.answer, ApiError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("service", "answer", "expected"),
    [
        ("10.96.0.1", TWO, (("10.0.7.4", 6443), ("10.0.7.5", 6443), ("10.96.0.1", 443))),
        ("", TWO, (("10.0.7.4", 6443), ("10.0.7.5", 6443))),
        ("10.96.0.1", {"endpoints": None, "ports": None}, (("10.96.0.1", 443),)),
        ("", ApiError(404, "NotFound", "none"), ()),
        ("x.hcp.westeurope.azmk8s.io", TWO, (("10.0.7.4", 6443), ("10.0.7.5", 6443))),  # AKS; a policy takes no names
    ],
)
async def test_api_servers_are_the_service_and_its_endpoints(
    monkeypatch: pytest.MonkeyPatch, service: str, answer: Body | ApiError, expected: tuple[Address, ...]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if service:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", service)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    builder = WorldBuilder()
    await look_for_api_servers(ApiServer(answer), builder.store)  # type: ignore[arg-type]
    assert builder.store.findings.api_servers == expected


async def test_moved_api_server_wakes_the_engines() -> None:
    builder, woken = WorldBuilder(), list[Key]()
    builder.engine("chat", 1)
    server: Any = ApiServer(TWO)
    resync = Resync(server, builder.store, 60, woken.append)
    for answer in (TWO, TWO, {**TWO, "ports": [{"port": 443}]}):
        server.answer = answer
        await resync._look_for_api_servers()
    assert [key.name for key in woken] == ["chat", "chat"]


async def test_api_servers_are_kept_when_the_read_is_refused() -> None:
    builder = WorldBuilder()
    builder.store.findings.api_servers = (Address("10.0.7.4", 6443),)
    with pytest.raises(ApiError):
        await look_for_api_servers(ApiServer(ApiError(403, "Forbidden", "no")), builder.store)  # type: ignore[arg-type]
    assert builder.store.findings.api_servers == (Address("10.0.7.4", 6443),)
