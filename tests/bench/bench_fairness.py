"""What sharing costs: three traces of jobs and engines in the simulator, each under three ways to share a cluster.

The decisions are the planner's own; scheduler and kubelet are simulated, with seed 1 (docs/simulator.md says what is
left out and how to read the pictures). Halves: half of each node's GPUs is for inference, half for training. Queue:
one pool, jobs wait for free GPUs. Sluice: one pool, jobs borrow from engines down to their floor.
"""

import sys

from dev.simulate.figures import table
from dev.simulate.run import Policy, play
from dev.simulate.trace import MADE

SEED = 1


def main() -> None:
    """Print a table of each trace."""
    for name, make in MADE.items():
        trace = make(SEED)
        plays = [play(trace, policy) for policy in Policy]
        sys.stdout.write(f"{name}: {len(trace.jobs)} jobs in {trace.days} days\n{table(plays)}\n\n")


if __name__ == "__main__":
    main()
