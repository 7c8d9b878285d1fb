"""How a pool's GPUs are given to jobs. allocate.py is the entry, queue.py says in which order jobs are decided.

market.py sets a job's terms (with lending.py and scale_up.py), reservations.py keeps what jobs in front could use,
placement.py chooses nodes (with ways.py, victims.py and preemption.py), refusals.py finds what is wrong with a job, and
waiting.py words why it waits.
"""
