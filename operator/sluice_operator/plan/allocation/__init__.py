"""A pool's GPUs: allocate.py hands them out.

Below it lie what it counts (inventory.py), where a job goes (placement.py, ways.py, search.py, victims.py, fit.py), on
what terms (access.py, lending.py, borrowing.py, kept.py, interruption.py, guests.py, scale_up.py), and what is refused
or said (refusals.py, waiting.py).
"""
