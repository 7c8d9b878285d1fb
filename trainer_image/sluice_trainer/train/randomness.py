"""Random numbers that depend on the job's seed and the position in training, not on what was drawn before."""

import random

import numpy as np
import torch


def seed_all(*position: int) -> None:
    """Seed every generator with the job's seed and a position: step, and first row of a micro-batch.

    This is done for each micro-batch, so that neither an interruption nor the number of GPUs changes what it draws.
    """
    seed = int(np.random.SeedSequence(position).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
