"""Training that can go on: the state after a step, and the files that keep it."""
