"""Pure decisions. Values in, values out: no I/O, no clock. Three doors, each read from top to bottom:

- allocation.py: who gets which GPUs of a pool now, and why the others wait
- job.py: what one job needs now, a claim included (holding.py)
- engine.py: what each of an engine's replicas should be (slot_plans.py)

Below them lie what they count (inventory.py, devices.py), where a job goes (placement.py, victims.py), on what terms
(borrowing.py, lending.py, access.py, kept.py), and what is refused or said (refusals.py, waiting.py).
"""
