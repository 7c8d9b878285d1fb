"""Journeys in which one thing goes wrong, at any place: always the same end, and nothing made twice on the way.

`make test` tries a few plans, `make soak` all. One alone, by its id; several by their ids, kinds or journeys:

    SLUICE_FAULT_PLANS=j1:kill-after:create_jobs:2 python3 -m pytest tests/integration/test_faults.py

SLUICE_FAULT_PLANS=all, or a number, tries more; SLUICE_FAULT_PLANS=record writes down what undisturbed journeys do.
"""

import asyncio
import dataclasses
import json
import os
from pathlib import Path

import pytest

from dev.cluster.control_plane import ControlPlane
from tests.integration.claim_scene import ClaimScene
from tests.integration.faults.choice import chosen_plans
from tests.integration.faults.journeys import JOURNEYS
from tests.integration.faults.outcome import Outcome, difference, end_of, outcome_of
from tests.integration.faults.plans import Plan, Record, only_says, path_of
from tests.integration.faults.strikes import rules_of, settings_of
from tests.integration.faults.trial import DEADLINE_SECONDS, Trial

pytestmark = pytest.mark.integration

CHOICE = os.environ.get("SLUICE_FAULT_PLANS", "")
QUIET_SECONDS = 0.5


@pytest.mark.parametrize("journey", JOURNEYS)
async def test_an_undisturbed_journey_is_as_it_was_recorded(
    control_plane: ControlPlane, scene: ClaimScene, tmp_path: Path, journey: str
) -> None:
    async with Trial.set_up(control_plane, scene, tmp_path) as trial:
        await trial.play(journey)
        if CHOICE == "record":
            await asyncio.sleep(5)
            write_record(journey, trial)
        record = Record.read(journey)
        await comes_to(scene, record.outcome)
        assert set(trial.recorder.writes) == set(record.writes)
        fewer = {name: n for name, n in record.writes.items() if trial.recorder.writes[name] < n}
        assert not [name for name in fewer if not only_says(name)]  # two statuses in a row may become one


@pytest.mark.parametrize("plan", chosen_plans(CHOICE), ids=lambda plan: plan.id)
async def test_a_fault_changes_nothing_of_the_end(
    control_plane: ControlPlane, scene: ClaimScene, tmp_path: Path, plan: Plan
) -> None:
    record = Record.read(plan.journey)
    async with Trial.set_up(control_plane, scene, tmp_path, **settings_of(plan)) as trial:
        rules, struck = rules_of(plan, trial)
        trial.proxy.rules += rules
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await trial.play(plan.journey)
                await comes_to(scene, record.outcome)
        except TimeoutError:
            differs = "\n".join(difference(record.outcome.end, end_of(scene)))
            pytest.fail(
                f"{plan.id} has not ended within {DEADLINE_SECONDS} s:\n{differs}\n{scene.history.summary()}", False
            )
        assert scene.broken_promises() == []
        if not struck():
            pytest.skip(f"the moment of {plan.id} did not come in this run")


async def comes_to(scene: ClaimScene, expected: Outcome) -> None:
    """The end is reached, and stays."""
    await scene.history.until(lambda: end_of(scene) == expected.end, "the end of every run", within=DEADLINE_SECONDS)
    await scene.history.never(lambda: end_of(scene) != expected.end, "the end did not stay", QUIET_SECONDS)
    outcome = outcome_of(scene)
    assert outcome.created == expected.created
    assert outcome.deleted == expected.deleted


def write_record(journey: str, trial: Trial) -> None:
    """What this run did, and of what was recorded before only what it did too."""
    path = path_of(journey)
    writes, events = dict(trial.recorder.writes), dict(trial.recorder.events)
    if path.exists():
        before = Record.read(journey)
        writes = {name: min(n, before.writes.get(name, n)) for name, n in writes.items()}
        events = {name: min(n, before.events.get(name, n)) for name, n in events.items()}
    outcome = dataclasses.asdict(outcome_of(trial.scene))
    record = {"writes": dict(sorted(writes.items())), "events": dict(sorted(events.items())), "outcome": outcome}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
