"""Run benchmarks, one after another, and write what they found to docs/benchmarks.

python -m tests.bench [--list] [NAME ...]
"""

import argparse
import ast
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from dev.cluster.binaries import KUBERNETES

HERE = Path(__file__).parent
PAGES = HERE.parents[1] / "docs" / "benchmarks"
BENCHMARKS = {path.stem.removeprefix("bench_").replace("_", "-"): path for path in sorted(HERE.glob("bench_*.py"))}

ONLY_BY_NAME = frozenset({"kopf", "prepare-many"})
"""kopf: half an hour, to decide something that is decided, on a page of which a part is written by hand.
prepare-many: hours, for a figure of memory."""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)} (all, if none)")
    parser.add_argument("--list", action="store_true", help="say what there is")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
    if chosen.list:
        for name, path in BENCHMARKS.items():
            sys.stdout.write(f"{name:<12}{_docstring(path).splitlines()[0]}\n")
        return
    failed = [name for name in chosen.names or sorted(BENCHMARKS.keys() - ONLY_BY_NAME) if not run(name)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str) -> bool:
    """Run one in a process of its own; its page is written only if it ends well."""
    sys.stdout.write(f"== {name}\n")
    sys.stdout.flush()
    began, load = datetime.now(UTC), os.getloadavg()[0]
    module = f"tests.bench.{BENCHMARKS[name].stem}"
    ended = subprocess.run([sys.executable, "-m", module], stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(ended.stdout)
    if ended.returncode:
        return False
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / f"{name}.md").write_text(page(name, ended.stdout, began, load))
    return True


def page(name: str, found: str, began: datetime, load: float) -> str:
    """What a benchmark measures, where and when it ran, and its figures."""
    seconds = (datetime.now(UTC) - began).total_seconds()
    return (
        f"# Benchmark: {name}\n\n{_docstring(BENCHMARKS[name])}\n\n"
        f"- Run: `make bench`, or `python -m tests.bench {name}`; {began:%Y-%m-%d %H:%M} UTC, {seconds:.0f} s\n"
        f"- Machine: {machine()}\n"
        f"- Kubernetes {KUBERNETES}; etcd without fsync; load average when it began: {load:.1f}\n\n"
        f"```text\n{found.rstrip()}\n```\n"
    )


def machine() -> str:
    """Cores, memory and processor."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return f"{os.cpu_count()} cores, {memory / 2**20:.0f} GiB memory, {model}"


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines()


def _docstring(path: Path) -> str:
    """Without the paragraphs that show a command."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return "\n\n".join(part for part in text.split("\n\n") if not part.startswith("    "))


if __name__ == "__main__":
    main()
