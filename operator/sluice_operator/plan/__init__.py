"""Pure decisions: values in, values out, no I/O and no clock. There are three doors, each read from top to bottom:

- pool/allocate.py: which job gets which GPUs of a pool now, and why the others wait
- job/decide.py: what one job needs now, a claim included (job/claim_steps.py)
- engine/decide.py: what each of an engine's replicas should be (engine/slot_plans.py, engine/rollout.py)

All three ask facts/ and the modules beside them, each of which opens with the question that it answers. No decision
writes anything. status/trace.py spells a decision out for a person.
"""
