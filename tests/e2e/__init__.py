"""Journeys on a real node, with real vLLM and real training. Start reading at conftest.py."""
