"""How an object is brought nearer to its spec: observe, plan, act. Start at job.py; the others read the same."""
