"""Which plans a run of the tests tries."""

import random

from tests.integration.faults.plans import Kind, Plan, all_plans


def chosen_plans(choice: str) -> list[Plan]:
    """All, so many of all, those of ids, kinds or journeys, or a few of every kind."""
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
    return few(plans) if plans else []


def few(plans: list[Plan]) -> list[Plan]:
    """One of each kind that matters, over all journeys."""
    return [next(plan for plan in plans if plan.kind is kind) for kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER)]
