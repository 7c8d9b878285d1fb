"""Pure decisions. Values in, values out: no I/O, no clock. Start at allocation.py and job.py."""
