"""Prepare: from a dataset's address to tokenised rows. Start with prepare.py."""
