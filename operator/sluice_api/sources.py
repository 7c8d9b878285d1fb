"""Where bytes come from and go to: pvc://, hf://, https:// and s3:// addresses."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import StringConstraints

from sluice_api.model import Remedy

VOLUMES = PurePosixPath("/volumes")
"""Where each claim that a pod uses is mounted, as /volumes/<claim>."""

_PVC = r"pvc://[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(/\.?[A-Za-z0-9_-][A-Za-z0-9._-]*)*"
_HF = r"hf://[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*(@[A-Za-z0-9._/-]+)?(/[A-Za-z0-9._/-]+)?"
_HTTPS = r"https://([^\s/?#@]+@)?([^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?#][^\s]*)?"

ModelUri = Annotated[
    str,
    StringConstraints(pattern=rf"^({_PVC}|{_HF})$", max_length=512),
    Remedy("write pvc://claim/path or hf://org/name@revision"),
]
DatasetUri = Annotated[
    str,
    StringConstraints(pattern=rf"^({_PVC}|{_HF}|{_HTTPS})$", max_length=1024),
    Remedy("write pvc://claim/path, https://host/path or hf://org/name/path"),
]
VolumeUri = Annotated[
    str,
    StringConstraints(pattern=rf"^{_PVC}$", max_length=512),
    Remedy("write pvc://claim/path: a PersistentVolumeClaim of this namespace and a folder in it"),
]


@dataclass(frozen=True)
class VolumePath:
    """A path inside a PersistentVolumeClaim of the object's own namespace."""

    claim: str
    path: str

    @property
    def mounted(self) -> PurePosixPath:
        """The path in every pod that mounts the claim."""
        return VOLUMES / self.claim / self.path


@lru_cache(maxsize=2**14)
def volume_path(uri: str) -> VolumePath | None:
    """The claim and path behind a pvc:// address; None for any other kind of address.

    Raises:
        ValueError: the path climbs out of its claim.
    """
    if not uri.startswith("pvc://"):
        return None  # and not taken apart: not everything behind https:// can be
    parts = urlsplit(uri)
    path = PurePosixPath(parts.path.lstrip("/"))
    if ".." in path.parts:
        raise ValueError(f"{uri}: '..' is not allowed in a pvc:// path")
    return VolumePath(parts.netloc, str(path) if path.parts else "")


def claims_of(*uris: str) -> tuple[str, ...]:
    """The claims that these addresses name, each once, in order."""
    found = (volume_path(uri) for uri in uris)
    return tuple(dict.fromkeys(path.claim for path in found if path))
