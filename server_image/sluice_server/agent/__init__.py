"""The agent beside vLLM: makes the engine's Adapters answer there, says when the slot is ready, and reports.

Read `reconcile.py` first (observe, plan, act), then `plan.py` (what is decided).
"""
