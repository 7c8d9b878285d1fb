"""What a training will take, before anything is borrowed for it: GPU memory, seconds, price. Begin at estimate.py."""
