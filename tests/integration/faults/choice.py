"""Which plans a run of the tests tries."""

from tests.integration.faults.plans import Kind, Plan, all_plans


def chosen_plans(choice: str) -> list[Plan]:
    """All, evenly spread so many, the one with an id, or nothing but a few of the kinds that differ most."""
    plans = all_plans()
    if choice == "all":
        return plans
    if choice == "record":
        return []
    if choice.isdecimal():
        return plans[:: max(1, len(plans) // int(choice))]
    if choice:
        return [plan for plan in plans if choice.replace(" ", "_") in plan.id]
    return few(plans) if plans else []


def few(plans: list[Plan]) -> list[Plan]:
    """One of each kind that matters, over all journeys."""
    return [next(plan for plan in plans if plan.kind is kind) for kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER)]
