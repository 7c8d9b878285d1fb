"""The agent beside vLLM: loads the engine's Adapters, drains, sleeps and wakes, serves /readyz, and reports.

Read `reconcile.py` first (observe, plan, act), then `plan.py` (what is decided) and `sleep.py`.
"""
