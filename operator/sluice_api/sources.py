"""Where bytes come from and go to, and with which credentials: pvc://, hf://, s3:// and its like, https://, configmap://.

A claim, a ConfigMap and a Secret are mounted into the pods that need them; everything else these fetch themselves.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field, StringConstraints

from sluice_api.model import Limit, Model, Remedy, SecretName

VOLUMES = PurePosixPath("/volumes")
"""Where each claim that a pod uses is mounted, as /volumes/<claim>."""
CONFIG_MAPS = PurePosixPath("/configmaps")
"""Where each ConfigMap that a pod reads is mounted, as /configmaps/<name>."""
CREDENTIALS = PurePosixPath("/credentials")
"""Where each Secret that a pod needs is mounted, as /credentials/<secret>: a file for each key."""

KEYS_OF: dict[str, tuple[str, ...]] = {
    "hf": ("HF_TOKEN", "HF_ENDPOINT"),
    "s3": (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_CA_BUNDLE",
    ),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "az": (
        "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID",
        "AZURE_STORAGE_ENDPOINT",
    ),
}  # fmt: skip
"""The keys of a Secret that can open an address, by its scheme. No other key of a Secret comes into a pod but those of
MISSPELT."""

_OTHER_SPELLINGS = {
    "AWS_ACCESS_KEY": "AWS_ACCESS_KEY_ID", "AWS_SECRET_KEY": "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_SECRET": "AWS_SECRET_ACCESS_KEY", "AWS_TOKEN": "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT": "AWS_ENDPOINT_URL", "AWS_S3_ENDPOINT": "AWS_ENDPOINT_URL", "S3_ENDPOINT": "AWS_ENDPOINT_URL",
    "HUGGING_FACE_HUB_TOKEN": "HF_TOKEN", "HUGGINGFACE_TOKEN": "HF_TOKEN", "HF_HUB_TOKEN": "HF_TOKEN",
    "HF_API_TOKEN": "HF_TOKEN",
    "GOOGLE_CREDENTIALS": "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_SAS": "AZURE_STORAGE_SAS_TOKEN",
}  # fmt: skip
_AS_MEANT = {key.lower(): key for keys in KEYS_OF.values() for key in keys} | {
    spelling.lower(): key for spelling, key in _OTHER_SPELLINGS.items()
}
MISSPELT = (
    *(key.lower() for kind in ("hf", "s3") for key in KEYS_OF[kind]), "HF_token", *_OTHER_SPELLINGS,
)  # fmt: skip
"""Keys that people write for those of KEYS_OF. They come into a pod too, which tells how they are to be written. None
of them is a key of Secrets for something else, as `token` is: a pod must get nothing of those."""


def meant_key(written: str) -> str | None:
    """The key of KEYS_OF that somebody means who wrote another one; None for a known one, and for all else."""
    meant = _AS_MEANT.get(written.lower())
    return meant if meant != written else None


OBJECT_STORES = ("s3://", "gs://", "az://")

_PVC_CLAIM = r"pvc://[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_PVC = _PVC_CLAIM + r"(/\.?[^\x00-\x20\x7f/.*?\\][^\x00-\x1f\x7f/*?\\]*)*"
_PVC_FILES = _PVC_CLAIM + r"(/\.?[^\x00-\x20\x7f/.\\][^\x00-\x1f\x7f/\\]*)*"
"""A name of a file may have whatever people write: spaces, umlauts, + and %, which stands for itself."""
_HF = r"hf://[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*(@[A-Za-z0-9._/-]+)?(/[A-Za-z0-9._/-]+)?"
_HF_FILES = r"hf://[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*(@[A-Za-z0-9._/-]+)?(/[A-Za-z0-9._/*?-]+)?"
_BUCKET = r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]"
_OBJECTS = _BUCKET + r"(/\.?[A-Za-z0-9_=+@:,-][A-Za-z0-9._=+@:,-]*)*"
_OBJECT_FILES = _BUCKET + r"(/\.?[A-Za-z0-9_=+@:,*?-][A-Za-z0-9._=+@:,*?-]*)+"
_HTTPS = r"https://([^\s/?#@]+@)?([^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?#][^\s]*)?"
_CONFIG_MAP = r"configmap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9_-][A-Za-z0-9._-]*"

_NO_DATASET = Limit(
    "!self.startsWith('hf://datasets/')",
    "write hf://org/name, a repository of the hub with a model: this is a dataset's",
)

ModelUri = Annotated[
    str,
    StringConstraints(pattern=rf"^({_PVC}|{_HF}|{_OBJECTS})$", max_length=512),
    Remedy("write pvc://claim/path, hf://org/name@revision, or s3://bucket/path (gs:// and az:// too)"),
    _NO_DATASET,
]
DatasetUri = Annotated[
    str,
    StringConstraints(pattern=rf"^({_PVC_FILES}|{_HF_FILES}|{_OBJECT_FILES}|{_HTTPS}|{_CONFIG_MAP})$", max_length=1024),
    Remedy(
        "write pvc://claim/path, s3://bucket/path (gs:// and az:// too), https://host/path, hf://datasets/org/name, "
        "hf://org/name/path or configmap://name/key"
    ),
]
FileUri = Annotated[
    str,
    StringConstraints(pattern=rf"^({_PVC}|{_OBJECTS}|{_CONFIG_MAP})$", max_length=512),
    Remedy("write pvc://claim/path, s3://bucket/path (gs:// and az:// too) or configmap://name/key"),
]
"""One small file."""
FolderUri = Annotated[
    str,
    StringConstraints(pattern=rf"^({_PVC}|{_OBJECTS})$", max_length=512),
    Remedy(
        "write pvc://claim/path, a PersistentVolumeClaim of this namespace and a folder in it, or s3://bucket/path "
        "(gs:// and az:// too)"
    ),
]
"""A folder that a job writes to."""
AdapterUri = Annotated[
    str,
    StringConstraints(pattern=rf"^({_PVC}|{_HF}|{_OBJECTS})$", max_length=1024),
    Remedy("write pvc://claim/path, s3://bucket/path (gs:// and az:// too) or hf://org/name@revision"),
    _NO_DATASET,
]


class Credentials(Model):
    """What opens an address."""

    secret: SecretName = Field(
        description="A Secret of this namespace. Its keys are named as the tools of the address name them: HF_TOKEN "
        "and HF_ENDPOINT; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL "
        "and AWS_CA_BUNDLE (the PEM itself); GOOGLE_APPLICATION_CREDENTIALS (the JSON itself); AZURE_STORAGE_ACCOUNT "
        "with AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_CLIENT_ID and its like. It is mounted as files into "
        "the pods that need it, and into no others."
    )


@dataclass(frozen=True)
class VolumePath:
    """A path inside a PersistentVolumeClaim of the object's own namespace."""

    claim: str
    path: str

    @property
    def mounted(self) -> PurePosixPath:
        """The path in every pod that mounts the claim."""
        return VOLUMES / self.claim / self.path


def volume_path(uri: str) -> VolumePath | None:
    """The claim and path behind a pvc:// address; None for any other kind of address.

    Raises:
        ValueError: the path climbs out of its claim.
    """
    # No other is taken apart, as not everything behind https:// can be, and none is kept, as they may be long.
    return _taken_apart(uri) if uri.startswith("pvc://") else None


@lru_cache(maxsize=2**14)
def _taken_apart(uri: str) -> VolumePath:
    claim, _, below = uri.removeprefix("pvc://").partition("/")
    path = PurePosixPath(below.lstrip("/"))
    if ".." in path.parts:
        raise ValueError(f"{uri}: '..' is not allowed in a pvc:// path")
    return VolumePath(claim, str(path) if path.parts else "")


def claims_of(*uris: str) -> tuple[str, ...]:
    """The claims that these addresses name, each once, in order."""
    found = (volume_path(uri) for uri in uris)
    return tuple(dict.fromkeys(path.claim for path in found if path))


@dataclass(frozen=True)
class ConfigMapKey:
    """A key of a ConfigMap of the object's own namespace."""

    name: str
    key: str

    @property
    def mounted(self) -> PurePosixPath:
        """The file in every pod that mounts the ConfigMap."""
        return CONFIG_MAPS / self.name / self.key


def config_map_key(uri: str) -> ConfigMapKey | None:
    """The ConfigMap and key behind a configmap:// address; None for any other kind of address."""
    scheme, _, rest = uri.partition("://")
    name, _, key = rest.partition("/")
    return ConfigMapKey(name, key) if scheme == "configmap" else None


def config_maps_of(*uris: str) -> tuple[str, ...]:
    """The ConfigMaps that these addresses name, each once, in order."""
    found = (config_map_key(uri) for uri in uris)
    return tuple(dict.fromkeys(each.name for each in found if each))


def shown(uri: str) -> str:
    """An address as anybody may read it: of https:// without user, query and fragment, which may be what opens it.

    Whatever prints or stores an address shows it so. The spec of the object has all of it.
    """
    scheme, _, rest = uri.partition("://")
    if scheme != "https":
        return uri
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"https://{host.rpartition('@')[2]}{slash}{path}"


def is_object(uri: str) -> bool:
    """Whether the address is in an object store."""
    return uri.startswith(OBJECT_STORES)


def takes_credentials(uri: str) -> bool:
    """Whether a Secret can open the address. Others are mounted, or public."""
    return uri.partition("://")[0] in KEYS_OF


def has_wildcard(uri: str) -> bool:
    """Whether an address names several files by a pattern; https:// addresses have none."""
    return not uri.startswith("https://") and any(sign in uri for sign in "*?")
