"""Suite: how long all tests take, by the report of the last `make test`. The goal is 20 minutes on two idle cores.

A test's time is that of its call and of the fixtures that were made for it first. Other tests run on the same cores
meanwhile, so the sums of the folders are more than the whole. New tests must stay within the budget that is printed.
"""

import sys

from dev.cache import cache_folder
from tests.slowest import Suite

REPORT = cache_folder() / "reports" / "tests.xml"


def main() -> None:
    """Print the tables."""
    if not REPORT.exists():
        sys.exit(f"{REPORT.name} is not there: run `make test` first")
    suite = Suite.read(REPORT)
    lines = [f"began {suite.began:%Y-%m-%d %H:%M} UTC: {suite.total}", "", *suite.folders(), "", *suite.slowest()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
