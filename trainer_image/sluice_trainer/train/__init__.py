"""Train: from tokenised rows to a trained adapter in a checkpoint. Start with loop.py."""
