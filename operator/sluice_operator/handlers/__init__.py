"""Watches, and what they put into the store and the queue. Start reading at watching.py; kopf is in kopf_watch.py."""
