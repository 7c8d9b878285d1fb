"""The two containers of an engine slot's pod: vLLM's own server behind a middleware, and the agent beside it.

Start reading at `middleware.py` (what a request goes through) and `agent/reconcile.py` (how adapters are loaded).
"""
