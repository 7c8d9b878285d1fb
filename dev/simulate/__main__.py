"""`python3 -m dev.simulate [office | steady | nightly | FILE.yaml] ...`: one cluster, shared in three ways."""

import argparse
from pathlib import Path

from pydantic import ValidationError

from dev.progress import step
from dev.simulate.draw import draw
from dev.simulate.figures import table
from dev.simulate.run import Policy, play
from dev.simulate.trace import MADE, Trace, read


def main() -> None:
    """Play traces under each policy; print the figures, draw the pictures."""
    parser = argparse.ArgumentParser(prog="python3 -m dev.simulate", description=__doc__)
    parser.add_argument("traces", nargs="*", default=list(MADE), help="names of traces that are made, or YAML files")
    parser.add_argument("--seed", type=int, default=1, help="of the traces that are made")
    parser.add_argument("--out", type=Path, default=Path("simulated"), help="folder for the pictures")
    words = parser.parse_args()
    for name in words.traces:
        try:
            trace = MADE[name](words.seed) if name in MADE else read(Path(name))
        except ValidationError as invalid:
            parser.error(f"{name}: {invalid}")
        compare(trace, words.out)


def compare(trace: Trace, folder: Path) -> None:
    """One trace under every policy."""
    step(f"{trace.name}: {len(trace.jobs)} jobs in {trace.days} days")
    plays = [play(trace, policy) for policy in Policy]
    print(table(plays))
    for file in draw(trace.name, plays, folder):
        step(f"written: {file}")


if __name__ == "__main__":
    main()
