"""A pool's GPUs: allocate.py hands them out, in the order of queue.py.

On what terms says market.py (lending.py, scale_up.py), what is reserved reservations.py, where a job goes placement.py
(ways.py, victims.py), what is refused refusals.py, and how a wait is worded waiting.py.
"""
