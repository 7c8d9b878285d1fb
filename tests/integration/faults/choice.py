"""Which plans a run of the tests tries."""

import random

from tests.integration.faults.plans import Kind, Plan, all_plans, only_says

SEED = 7
FEW = (
    ("j1", Kind.KILL_BEFORE),
    ("j1", Kind.KILL_AFTER),
    ("group", Kind.KILL_AFTER),
    ("j1", Kind.ANSWER_409),
    ("j3", Kind.ANSWER_503),
    ("j3", Kind.RESET_AFTER),
    ("group", Kind.SILENCE_AFTER),
    ("j3", Kind.PAUSE),
    ("j1", Kind.ETCD),
    ("j3", Kind.STALE_LIST),
    ("j3", Kind.EVENT_LOST),
    ("j1", Kind.EVENT_410),
    ("j1", Kind.EVENT_LATE),
)
"""What differs most."""


def chosen_plans(choice: str) -> list[Plan]:
    """All, so many of all, those of ids, kinds or journeys, or a few of the kinds that differ most."""
    plans = all_plans()
    if choice == "all":
        return plans
    if choice == "record":
        return []
    if choice.isdecimal():
        return random.Random(int(choice)).sample(plans, min(int(choice), len(plans)))
    if choice:
        wanted = choice.split(",")
        return [plan for plan in plans if plan.id in wanted or plan.kind in wanted or plan.journey in wanted]
    draw = random.Random(SEED)
    return [draw.choice([p for p in plans if (p.journey, p.kind) == few and not only_says(p.at)]) for few in FEW]
