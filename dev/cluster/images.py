"""The dev images: one thin Debian layer with Python under three names, and the pause image, as one OCI archive.

The code and the Python environment aren't in them. They are mounted when a container starts (`runc_wrapper.py`),
so that a change of code needs no image, and no image carries five gigabytes of torch.
"""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from dev.cache import cache_folder, made_once
from dev.commands import need, run
from dev.progress import step

# Raised when the images' content changes.
VERSION = "1"
CHECKOUT = "/opt/sluice"
ENVIRONMENT = "/opt/sluice-env"
PAUSE = "localhost/pause:1"
DEV_IMAGES = tuple(f"localhost/sluice-{part}:dev" for part in ("operator", "trainer", "server"))

PACKAGES = "python3,libnuma1,ca-certificates"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

DEV_VARIABLES = {
    "SLUICE_DEV_MOUNTS": "1",
    "PATH": f"{ENVIRONMENT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": ":".join(f"{CHECKOUT}/{part}" for part in ("operator", "trainer_image", "server_image")),
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HOME": "/tmp",
}


@dataclass(frozen=True)
class Image:
    """One image of one layer."""

    name: str
    layer: Path
    config: dict[str, object]


def archive() -> Path:
    """Make the OCI archive with all images, unless it is in the cache; returns its path."""
    folder = cache_folder() / f"images-{VERSION}"
    with made_once(folder) as making:
        if making is not None:
            debian, pause = making / "debian.tar", making / "pause.tar"
            _debian_layer(debian)
            _pause_layer(pause)
            environment = [f"{name}={value}" for name, value in DEV_VARIABLES.items()]
            images = [Image(PAUSE, pause, {"Entrypoint": ["/catatonit", "-P"]})]
            images += [Image(name, debian, {"Env": environment, "WorkingDir": "/tmp"}) for name in DEV_IMAGES]
            write_archive(making / "images.tar", images)
            debian.unlink()
            pause.unlink()
    return folder / "images.tar"


def _debian_layer(file: Path) -> None:
    step("making the Debian layer of the dev images (once, about 1 min) ...")
    run(
        [
            *(need("mmdebstrap", "`apt-get install mmdebstrap`"), "--quiet", "--variant=minbase"),
            f"--include={PACKAGES}",
            # Other users' ids pass through /root to what is mounted below it; mounts need their folders to exist.
            f'--customize-hook=chmod 755 "$1/root"; mkdir -p "$1{CHECKOUT}" "$1{ENVIRONMENT}"',
            *("bookworm", file),
        ]
    )


def _pause_layer(file: Path) -> None:
    """One static program that waits, reaps and ends when told."""
    catatonit = need("catatonit", "`apt-get install catatonit`")
    with tarfile.open(file, "w") as layer:
        layer.add(catatonit, "catatonit")


def write_archive(file: Path, images: list[Image]) -> None:
    """Write an OCI archive of uncompressed layers; a layer that several images share is written once."""
    with tarfile.open(file, "w") as out:
        written: set[str] = set()
        _add(out, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        manifests = []
        for image in images:
            layer = _add_layer(out, image.layer, written)
            config = {
                "architecture": "amd64",
                "os": "linux",
                "config": image.config,
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            }
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _add_json(out, CONFIG, config, written),
                "layers": [layer],
            }
            name = {"io.containerd.image.name": image.name}
            manifests.append({**_add_json(out, MANIFEST, manifest, written), "annotations": name})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        _add(out, "index.json", json.dumps(index).encode())


def _add_layer(out: tarfile.TarFile, file: Path, written: set[str]) -> dict[str, object]:
    with file.open("rb") as layer:
        digest = hashlib.file_digest(layer, "sha256").hexdigest()
    if digest not in written:
        written.add(digest)
        out.add(file, f"blobs/sha256/{digest}")
    return {"mediaType": LAYER, "digest": f"sha256:{digest}", "size": file.stat().st_size}


def _add_json(out: tarfile.TarFile, kind: str, value: object, written: set[str]) -> dict[str, object]:
    content = json.dumps(value, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in written:
        written.add(digest)
        _add(out, f"blobs/sha256/{digest}", content)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}


def _add(out: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    out.addfile(entry, io.BytesIO(content))
