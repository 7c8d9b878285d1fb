"""What is shown of a decision: statuses, conditions, and a decision spelled out. Nothing here is decided.

An engine's status is not here: its agents act on it, so it is part of the engine's decision (plan/engine/status.py).
"""
