"""Pure decisions. Values in, values out: no I/O, no clock. Three doors, each read from top to bottom:

- pool/allocate.py: who gets which GPUs of a pool now, and why the others wait
- job/decide.py: what one job needs now, a claim included (holding.py)
- engine/decide.py: what each of an engine's replicas should be (slot_plans.py)

All three read what is so from the modules beside them, each of which opens with the question that it answers. Nothing
is written anywhere. status/trace.py spells a decision out for a person.
"""
