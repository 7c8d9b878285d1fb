"""promtool, which checks and plays alerts: the one on PATH, or that of Debian's package, without its server."""

import shutil
import tempfile
from pathlib import Path

from dev.cache import cache_folder, locked, made_once
from dev.commands import run, succeeds
from dev.errors import DevError
from dev.progress import step

PACKAGE = "prometheus"
REMEDY = "install promtool, a part of Prometheus (2.42 or newer), and put it on PATH"


def promtool() -> Path:
    """Its path; what apt vouches for is unpacked into the cache once, and nothing is installed."""
    if found := shutil.which("promtool"):
        return Path(found)
    folder = cache_folder() / "programs" / "promtool-of-debian"
    with made_once(folder) as making:
        if making is not None:
            step("downloading promtool (once) ...")
            _unpack(making)
    return folder / "promtool"


def _unpack(folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise DevError(f"{REMEDY}: there is no apt-get here")
    with locked("packages"), tempfile.TemporaryDirectory() as scratch:
        if not succeeds(["apt-cache", "show", PACKAGE]):
            run(["apt-get", "update", "--quiet"])
        run(["apt-get", "download", "--quiet", PACKAGE], cwd=Path(scratch))
        (package,) = Path(scratch).glob("*.deb")
        run(["dpkg-deb", "--extract", package, Path(scratch) / "files"])
        shutil.copy2(Path(scratch) / "files" / "usr" / "bin" / "promtool", folder / "promtool")
