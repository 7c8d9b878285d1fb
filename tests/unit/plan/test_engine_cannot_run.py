"""An engine that can never run says why: which field, and what to do."""

from dataclasses import replace
from typing import Any

import pytest

from sluice_api.reasons import Reason
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.parse_pod import parse_pod
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import job_key
from sluice_operator.plan.inventory import take_stock
from tests.unit.operator.bodies import pod
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, allocated, change, decide, planned_status


def ready(builder: WorldBuilder, **spec: Any) -> tuple[str, str]:
    engine = builder.engine("chat", 1, **spec)
    condition = planned_status(builder.world, engine, NOW).conditions[0]
    return condition.reason, condition.message


@pytest.mark.parametrize(
    ("rule", "nodes", "spec", "reason", "told"),
    [
        ("one that waits for its turn", [2], {}, Reason.NONE_SERVING, "0 of 1 replicas serve."),
        (
            "more GPUs than any node has",
            [2, 4],
            {"resources": {"gpus": 64}},
            Reason.EXCEEDS_EVERY_NODE,
            "spec.resources.gpus: 64 are asked for, the largest node of pool default has 4. Ask for at most 4",
        ),
        (
            "no node at all",
            [],
            {},
            Reason.NO_NODES,
            "spec.resources.pool: pool default has no node that offers nvidia.com/gpu.",
        ),
        (
            "no model",
            [2],
            {"model": {"uri": "pvc://nothing/base"}},
            Reason.VOLUME_CLAIM_NOT_FOUND,
            "spec.model.uri: PersistentVolumeClaim nothing does not exist in namespace team. Create it",
        ),
        (
            "no volume with adapters",
            [2],
            {"lora": {"volumeClaims": ["adapters", "nothing"]}},
            Reason.VOLUME_CLAIM_NOT_FOUND,
            "spec.lora.volumeClaims[1]: PersistentVolumeClaim nothing does not exist in namespace team. Create it",
        ),
    ],
)
def test_an_engine_that_cannot_run_says_why(
    rule: str, nodes: list[int], spec: dict[str, Any], reason: Reason, told: str
) -> None:
    builder = WorldBuilder()
    for gpus in nodes:
        builder.node(gpus)
    found, message = ready(builder, **spec)
    assert found == reason, rule
    assert told in message, rule


def test_volume_claim_that_is_being_deleted_is_as_good_as_gone() -> None:
    builder = WorldBuilder()
    builder.node(1)
    builder.job("a")
    claim = builder.world.volume_claims[Key("PersistentVolumeClaim", "team", "datasets")]
    builder.store.put(replace(claim, terminating=True, resource_version=claim.resource_version + 1000), seen=True)
    decision = decide(builder, "a")
    assert decision.reason is Reason.VOLUME_CLAIM_NOT_FOUND
    assert "PersistentVolumeClaim datasets of namespace team is being deleted, and no pod may begin" in decision.message


@pytest.mark.parametrize(("claim", "field"), [("models", "model"), ("datasets", "dataset"), ("adapters", "output")])
def test_volume_claim_not_found_names_the_uri_field(claim: str, field: str) -> None:
    builder = WorldBuilder()
    builder.node(1)
    builder.job("a")
    builder.store.remove(Key("PersistentVolumeClaim", "team", claim), f"pvc-team-{claim}")
    decision = decide(builder, "a")
    assert decision.reason is Reason.VOLUME_CLAIM_NOT_FOUND
    assert decision.message.startswith(f"spec.{field}.uri: PersistentVolumeClaim {claim} does not exist")


def test_replicas_beyond_the_pool_are_not_counted() -> None:
    """Twenty engines of a thousand replicas each took a fifth of a second of every decision."""
    builder = WorldBuilder()
    builder.node(2)
    for number in range(20):
        builder.engine(f"e{number}", 1000, "evil")
    pool = find_pool(builder.world, "default")
    assert pool is not None
    stock = take_stock(builder.world, pool)
    assert len(stock.placed) == 2
    assert len(stock.waiting_slots) == 20 * 3 - 2, "as many as an empty pool could hold, and one that waits"


def test_model_that_cannot_be_fetched_is_in_the_engines_condition() -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 2, model={"uri": "s3://models/llama", "credentials": {"secret": "models"}})
    pods = [builder.slot(engine, index, "n1", ready=False) for index in range(2)]
    assert pods[0] is not None
    change(builder, pods[0], fetches_model=True)
    condition = planned_status(builder.world, engine, NOW).conditions[0]
    assert (condition.reason, condition.message) == (
        Reason.NONE_SERVING,
        "0 of 2 replicas serve. chat-0-x fetches its model: kubectl logs chat-0-x -c model shows how far.",
    )
    said = "spec.model: s3://models/llama: the Secret models is not in this namespace, or is empty. Create it: kubectl"
    change(builder, pods[0], fetch_failure=said)
    condition = planned_status(builder.world, engine, NOW).conditions[0]
    assert (condition.status, condition.reason) == ("False", Reason.DOWNLOAD_FAILED)
    assert condition.message == f"0 of 2 replicas serve. {said} chat-0-x tries again by itself."


@pytest.mark.parametrize(
    ("log", "failure"),
    [
        ("INFO x\nmodel.uri pvc://m/x: it is damaged. Copy it.\n", "model.uri pvc://m/x: it is damaged. Copy it."),
        (
            "(EngineCore pid=7) ValueError: no room for a sequence\n(APIServer pid=1)   File x\n"
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
            "ValueError: no room for a sequence",
        ),
        ("RuntimeError: Engine core initialization failed.", "RuntimeError: Engine core initialization failed."),
        ("", "Error"),
    ],
)
def test_vllm_that_has_ended_is_a_failure_while_it_starts_again(log: str, failure: str) -> None:
    raw = pod("chat-0", 1, metadata={"labels": {"sluice.dev/engine": "chat"}})
    last = {"terminated": {"exitCode": 1, "reason": "Error", "message": log}}
    raw["status"]["containerStatuses"] = [{"name": "vllm", "state": {"running": {"startedAt": "x"}}, "lastState": last}]
    assert parse_pod(raw).failure == failure
    raw["status"]["containerStatuses"] = [
        {"name": "trainer", "state": {"running": {"startedAt": "x"}}, "lastState": last}
    ]
    assert parse_pod(raw).failure == ""


def test_vllm_that_ends_is_in_the_engines_condition() -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 2)
    failing, serving = (builder.slot(engine, index, "n1", ready=index == 1) for index in range(2))
    assert failing is not None
    assert serving is not None
    change(builder, failing, failure="model.uri pvc://models/base: its config.json can't be read as JSON. Restore it.")
    change(builder, serving, failure="an earlier end, since when it serves again")
    condition = planned_status(builder.world, engine, NOW).conditions[0]
    assert (condition.status, condition.reason) == ("True", Reason.REPLICA_FAILS)
    assert condition.message == (
        "1 of 2 replicas serve. vLLM has ended in chat-0-x: model.uri pvc://models/base: its config.json can't be read "
        "as JSON. Restore it. It starts again by itself; kubectl logs chat-0-x -c vllm --previous has the rest."
    )


@pytest.mark.parametrize("failing", [{"failure": "ValueError: x"}, {"fetch_failure": "spec.model: no Secret."}, {}])
def test_job_that_waits_is_told_of_the_engine_that_can_not_start(failing: dict[str, str]) -> None:
    builder = WorldBuilder()
    builder.node(1)
    slot = builder.slot(builder.engine("chat", 1, preemption={"policy": "Never"}), 0, "n1", ready=False)
    assert slot is not None
    change(builder, slot, **failing)
    builder.job("a", 1, outcomes=(PREPARED,))
    wait = allocated(builder).waits[job_key("team", "a")]
    told = "mend or delete engine chat, which holds a GPU and can't start to serve (see its condition Ready)"
    assert (told in wait.message) == bool(failing)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"uri": "s3://models/llama", "cacheClaim": "nothing"}, "spec.model.cacheClaim"),
        ({"uri": "s3://models/llama", "chatTemplate": {"uri": "pvc://nothing/t.jinja"}}, "spec.model.chatTemplate.uri"),
    ],
)
def test_claim_of_the_cache_or_the_template_that_is_missing_is_named(model: dict[str, Any], field: str) -> None:
    builder = WorldBuilder()
    builder.node(2)
    reason, message = ready(builder, model=model)
    assert reason == Reason.VOLUME_CLAIM_NOT_FOUND
    assert f"{field}: PersistentVolumeClaim nothing does not exist in namespace team. Create it" in message
