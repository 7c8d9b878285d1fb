"""The Dockerfiles, built for real: by buildah, from Debian's and Python's packages, where there is no Docker engine.

Each image is built as a user builds it but for its base, which comes from no registry: the Debian layer of the local
cluster's images, with what `python:3.11-slim` has besides. SLUICE_IMAGES says which are built (operator by default,
about a minute; trainer and server carry torch, several gigabytes and many minutes: `make soak` builds them).
"""

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from dev.cache import REPOSITORY
from dev.cluster import images
from dev.cluster.host import NEEDED_TO_BUILD, install_packages
from dev.cluster.kind import BUILD_ARGS, FOLDERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE = "localhost/python:slim"
USER = "65532:65532"
IMAGES = {name.partition(":")[0].rpartition("-")[2]: folder for name, folder in FOLDERS.items()}
IMPORTED = {
    "operator": "sluice_operator.__main__",
    "trainer": "sluice_trainer.data.prepare, sluice_trainer.train.loop, sluice_trainer.export.export, "
    "sluice_files.models, sluice_files.hub_datasets",
    "server": "sluice_server.agent.run, sluice_server.launch, sluice_files.models, vllm",
}
"""What each image's processes import: a package that its lock file lacks would be missing here."""
CHOSEN = os.environ.get("SLUICE_IMAGES", "operator").split(",")


def buildah(*words: str | Path, stdin: str | None = None) -> str:
    """Run buildah; what it printed."""
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    run = subprocess.run(
        ["buildah", *map(str, words)], input=stdin, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"buildah {words[0]}: {(run.stdout + run.stderr)[-3000:]}"
    return run.stdout.strip()


def trusting() -> list[str]:
    """Options by which a build step trusts the certificates that this machine trusts."""
    return [f"--volume={CERTIFICATES}:{CERTIFICATES}:ro"] if CERTIFICATES.exists() else []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with what python:3.11-slim has; all that was built here is removed afterwards."""
    install_packages(NEEDED_TO_BUILD)
    layer = tmp_path_factory.mktemp("base") / "debian.tar"
    _unpack_debian(images.archive(), layer)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, layer, "/")
    layer.unlink()
    install = "apt-get update -qq && apt-get install -qq -y --no-install-recommends python3-venv python3-pip"
    buildah("run", container, "--", "sh", "-c", install)
    buildah("commit", "--quiet", "--rm", container, BASE)
    yield BASE
    buildah("rmi", "--all", "--force")


@pytest.mark.parametrize("image", CHOSEN)
def test_dockerfile_builds_an_image_that_starts_as_a_user_without_rights(base: str, image: str) -> None:
    folder = IMAGES[image]
    arguments = (f"--build-arg={argument}" for argument in (f"BASE={base}", *BUILD_ARGS.get(folder, ())))
    tag = f"localhost/sluice-{image}:built"
    certificate = [f"--env=PIP_CERT={CERTIFICATES}"] if trusting() else []
    buildah(
        *("bud", "--quiet", *trusting(), *certificate, *arguments),
        *("--file", REPOSITORY / folder / "Dockerfile", "--tag", tag, REPOSITORY),
    )
    config = json.loads(buildah("inspect", "--type=image", tag))["OCIv1"]["config"]
    assert config["User"] == USER
    container = buildah("from", tag)
    program = f"import os, {IMPORTED[image]}; print('imported by', os.getuid())"
    output = buildah("run", f"--user={USER}", container, "--", "python3", "-c", program)
    buildah("rm", container)
    assert output.endswith("imported by 65532")


def _unpack_debian(archive: Path, layer: Path) -> None:
    """The Debian layer of the dev images' OCI archive, as a tar file."""
    with tarfile.open(archive) as parts:
        index = json.loads(_part(parts, "index.json").read())
        names = {found["annotations"]["io.containerd.image.name"]: found["digest"] for found in index["manifests"]}
        manifest = json.loads(_part(parts, _blob(names[images.DEV_IMAGES[0]])).read())
        (debian,) = manifest["layers"]
        with layer.open("wb") as out:
            shutil.copyfileobj(_part(parts, _blob(debian["digest"])), out)


def _part(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    assert file, f"{name} is no file of the archive"
    return file


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
