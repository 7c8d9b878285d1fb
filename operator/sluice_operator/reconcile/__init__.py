"""The life of every change: observe, plan, act. Start at job.py; the others read the same."""
