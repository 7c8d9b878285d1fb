"""The training side: Prepare, Train and Export, each one process that ends with a StageOutcome.

Read data/prepare.py, train/loop.py and export/export.py first: each is its stage from top to bottom.
"""
