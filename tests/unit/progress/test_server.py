"""The endpoint: what it answers, and that its cheap checks come before its dear ones."""

import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from sluice_api.reports import ENGINE_REPORTS_PATH, MAX_REPORT_BYTES, TRAINING_REPORTS_PATH, TrainingReport
from sluice_operator import metrics
from sluice_operator.clock import Clock
from sluice_operator.cluster.client import Api
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key, Owner, PodView
from sluice_operator.observe.world import job_key
from sluice_operator.progress.connections import runner_of
from sluice_operator.progress.intake import Intake
from sluice_operator.progress.lookup import Lookup
from sluice_operator.progress.refusal import Refusal
from sluice_operator.progress.server import REPORTS_AT_ONCE, Endpoint, answered
from sluice_operator.progress.tokens import BoundPod, TokenReviews, bearer
from sluice_operator.progress.writer import ProgressWriter
from tests.unit.progress.test_writer import Status, clock
from tests.unit.progress.worlds import DEPLOYMENT, REPLICA, TRAINER, whole

GOOD = {"attempt": 1, "sequence": 1, "activity": "Training", "step": 1, "totalSteps": 9}
ENGINE = {"sequence": 1, "serving": True, "draining": False, "inFlight": 0}


class KnownTokens(TokenReviews):
    """The token is the pod's name."""

    async def pod_of(self, authorization: str | None, address: str) -> BoundPod:
        name = bearer(authorization).removesuffix("..")
        return BoundPod("team", name, f"{'trainer' if 'train' in name else 'replica'}-uid")


class KnownDeployments(Lookup):
    async def deployment_of(self, pod: PodView) -> Owner | None:
        return DEPLOYMENT if pod.owner and pod.owner.kind == "ReplicaSet" else None


class Served(TestServer):
    """The app as it is served."""

    async def _make_runner(self, **_: Any) -> web.AppRunner:
        return runner_of(self.app)


class Desk:
    """An endpoint over a whole small World."""

    def __init__(self) -> None:
        self.store: Store = whole()
        self.leads = True
        self.clock = Clock()
        self.at: datetime | None = None
        """What time it is, if a test says so."""
        self.woken: list[Key] = []
        self.status = Status()
        api = Api.__new__(Api)
        self.writer = ProgressWriter(self.status.write, lambda: True, clock)
        self.intake = Intake(self.store, self.writer, self.woken.append)
        tokens, deployments = KnownTokens(api, lambda _pod: True), KnownDeployments(self.store, api)
        self.endpoint = Endpoint(self.store, tokens, deployments, self.intake, lambda: self.leads, self.now)
        self.client: TestClient[Any, Any] = TestClient(Served(self.endpoint.app()))

    def now(self) -> datetime:
        return self.at or self.clock.now()

    async def post(
        self,
        body: Any,
        path: str = TRAINING_REPORTS_PATH,
        name: str = TRAINER.key.name,
        headers: dict[str, str] | None = None,
    ) -> ClientResponse:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(path, data=data, headers={"Authorization": f"Bearer {name}..", **(headers or {})})


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    made = Desk()
    async with made.writer.running(), made.client:
        yield made


async def refused(answer: ClientResponse, expected: Refusal) -> str:
    body = await answer.json()
    assert (answer.status, body["error"]) == (expected.status, expected.value)
    return str(body["message"])


async def test_accepted_training_report_wakes_its_job_and_is_written(desk: Desk) -> None:
    before = metrics.PROGRESS_REPORTS.labels("training", "accepted")._value.get()
    assert (await desk.post(GOOD)).status == 202
    assert desk.woken == [job_key("team", "tone")]
    assert desk.store.world().heartbeats["train-uid"].attempt == 1
    assert desk.intake.training["job-uid"] == TrainingReport.model_validate(GOOD)
    await desk.status.next()
    assert desk.status.steps == [1]
    assert metrics.PROGRESS_REPORTS.labels("training", "accepted")._value.get() == before + 1


async def test_step_seconds_are_not_kept_while_saving(desk: Desk) -> None:
    paces = []
    for sequence, activity in enumerate(("Training", "Saving", "Evaluating"), start=1):
        await desk.post(GOOD | {"sequence": sequence, "activity": activity, "stepSeconds": 0.5})
        paces.append(desk.store.world().heartbeats["train-uid"].step_seconds)
    assert paces == [0.5, None, 0.5]


async def test_report_of_a_stall_does_not_renew_the_heartbeat(desk: Desk) -> None:
    """Its silence is counted from its last step, and what it says is kept for the status."""
    await desk.post(GOOD)
    before = desk.store.world().heartbeats["train-uid"]
    await desk.post(GOOD | {"sequence": 2, "message": "no progress for 130 s"})
    stuck = desk.store.world().heartbeats["train-uid"]
    assert (stuck.at, stuck.trouble) == (before.at, "no progress for 130 s")
    await desk.post(GOOD | {"sequence": 3})
    assert desk.store.world().heartbeats["train-uid"].at > before.at


async def test_only_the_first_and_the_finished_report_wake_the_job(desk: Desk) -> None:
    for sequence in (1, 2, 3):
        await desk.post(GOOD | {"sequence": sequence})
    assert len(desk.woken) == 1
    await desk.post(GOOD | {"sequence": 4, "activity": "Finished"})
    assert len(desk.woken) == 2


async def test_accepted_engine_report_is_stored(desk: Desk) -> None:
    answer = await desk.post(ENGINE, ENGINE_REPORTS_PATH, REPLICA.key.name)
    assert answer.status == 202
    assert desk.store.world().reports["replica-uid"].report.sequence == 1


async def test_not_leading_is_answered_before_any_other_check(desk: Desk) -> None:
    desk.leads = False
    answer = await desk.client.post(TRAINING_REPORTS_PATH, data=b"x")
    await refused(answer, Refusal.NOT_LEADING)
    assert answer.headers["Retry-After"] == "1"


async def test_report_without_a_token_is_refused(desk: Desk) -> None:
    answer = await desk.client.post(TRAINING_REPORTS_PATH, json=GOOD)
    await refused(answer, Refusal.NO_TOKEN)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_too_large_body_is_refused_with_and_without_a_length(desk: Desk) -> None:
    await refused(await desk.post(b" " * (MAX_REPORT_BYTES + 1)), Refusal.TOO_LARGE)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    headers = {"Authorization": f"Bearer {TRAINER.key.name}.."}
    answer = await desk.client.post(TRAINING_REPORTS_PATH, data=endless(), headers=headers)
    await refused(answer, Refusal.TOO_LARGE)


async def test_gzip_bomb_is_not_decompressed(desk: Desk) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    await refused(await desk.post(bomb, headers={"Content-Encoding": "gzip"}), Refusal.MALFORMED)


async def test_body_with_a_wrong_content_encoding_is_malformed(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    await refused(await desk.post(b"{}", headers={"Content-Encoding": "gzip"}), Refusal.MALFORMED)
    assert caplog.records == []


async def test_a_malformed_report_says_which_field(desk: Desk) -> None:
    message = await refused(await desk.post(GOOD | {"loss": "low"}), Refusal.MALFORMED)
    assert message.startswith("loss: ")
    assert desk.woken == []


async def test_rate_limited_pod_holds_no_other_pod_back(desk: Desk) -> None:
    answers = [await desk.post(GOOD | {"sequence": n}) for n in range(1, REPORTS_AT_ONCE + 2)]
    await refused(answers[-1], Refusal.RATE_LIMITED)
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert (await desk.post(ENGINE, ENGINE_REPORTS_PATH, REPLICA.key.name)).status == 202


async def test_replayed_report_is_a_stale_sequence(desk: Desk) -> None:
    await desk.post(GOOD)
    await refused(await desk.post(GOOD), Refusal.STALE_SEQUENCE)


async def test_stolen_token_cannot_silence_its_pod_by_sequences(desk: Desk) -> None:
    """It counts past the pod and says that training hangs: the pod's own reports keep it alive, and are heard again."""
    desk.at = datetime(2026, 1, 1, tzinfo=UTC)
    await desk.post(GOOD)
    for second in range(1, 4):
        desk.at += timedelta(seconds=1)
        await desk.post(GOOD | {"sequence": 2**52 + second, "message": "it hangs"})
        assert desk.store.world().heartbeats["train-uid"].at < desk.at
        answer = await desk.post(GOOD | {"sequence": 1 + second, "step": 5})
        assert desk.store.world().heartbeats["train-uid"].at == desk.at
        assert (answer.status == 202) == (second == 3)
    assert desk.intake.training["job-uid"].step == 5


async def test_stolen_token_cannot_silence_its_pod_by_a_flood(desk: Desk) -> None:
    desk.at = datetime(2026, 1, 1, tzinfo=UTC)
    for sequence in range(1, REPORTS_AT_ONCE + 1):
        await desk.post(GOOD | {"sequence": sequence, "message": "it hangs" if sequence > 1 else None})
    desk.at += timedelta(seconds=200)
    await refused(await desk.post(GOOD | {"sequence": 99}), Refusal.RATE_LIMITED)
    assert desk.store.world().heartbeats["train-uid"].at == desk.at


async def test_stolen_token_of_an_agent_cannot_silence_it(desk: Desk) -> None:
    for sequence in (1, 2**52, 2, 3, 4):
        await desk.post(ENGINE | {"sequence": sequence}, ENGINE_REPORTS_PATH, REPLICA.key.name)
    assert desk.store.world().reports["replica-uid"].report.sequence == 4


async def test_stale_report_of_a_stall_does_not_renew_the_heartbeat(desk: Desk) -> None:
    await desk.post(GOOD | {"sequence": 9})
    before = desk.store.world().heartbeats["train-uid"]
    await refused(await desk.post(GOOD | {"sequence": 8, "message": "it hangs"}), Refusal.STALE_SEQUENCE)
    assert desk.store.world().heartbeats["train-uid"] == before


async def test_new_term_accepts_a_lower_sequence(desk: Desk) -> None:
    """In between another leader has accepted reports; which, only the status knows."""
    await desk.post(GOOD | {"sequence": 9})
    desk.store.findings.term += 1
    assert (await desk.post(GOOD | {"sequence": 5})).status == 202


async def test_deleted_job_is_forgotten_by_intake_and_writer(desk: Desk) -> None:
    await desk.post(GOOD)
    await desk.status.next()
    desk.store.remove(job_key("team", "tone"), "job-uid")
    desk.intake.forget_gone()
    assert desk.intake.training == {}
    assert desk.writer.jobs == frozenset()


async def test_internal_error_is_answered_and_logged(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(desk.intake, "take_training", fail)
    answer = await desk.post(GOOD)
    assert (answer.status, (await answer.json())["error"]) == (500, "error")
    assert "ZeroDivisionError" in caplog.text


async def test_other_routes_are_not_served(desk: Desk) -> None:
    assert (await desk.client.get(TRAINING_REPORTS_PATH)).status == 405
    assert (await desk.client.post("/metrics")).status == 404


async def test_connection_reset_by_a_pod_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def hangs_up(_: web.Request) -> web.Response:
        raise ConnectionResetError("Connection lost")

    await answered(make_mocked_request("POST", ENGINE_REPORTS_PATH), hangs_up)
    assert not caplog.records
