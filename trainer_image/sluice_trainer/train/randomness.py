"""Random numbers that depend on the job's seed and on what they are for, not on what was drawn before."""

import random

import numpy as np
import torch


def seed_all(*position: int) -> None:
    """Start every generator from the job's seed and a place in the training.

    Done at each micro batch, so that neither an interruption nor the number of GPUs changes what is drawn there.
    """
    seed = int(np.random.SeedSequence(position).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
