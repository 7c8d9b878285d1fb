"""Pure decisions. Values in, values out: no I/O, no clock. Three doors, each read from top to bottom:

- allocation/allocate.py: who gets which GPUs of a pool now, and why the others wait
- job/decide.py: what one job needs now, a claim included (holding.py)
- engine/decide.py: what each of an engine's replicas should be (slot_plans.py)

All three read what is so from facts/, and none writes it anywhere. status/trace.py spells a decision out for a person.
"""
