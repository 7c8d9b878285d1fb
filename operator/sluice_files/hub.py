"""hf:// addresses: repositories of a hub that speaks Hugging Face's API."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import HfApi, RepoFile, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from sluice_files.credentials import NOTHING, Credentials, endpoint
from sluice_files.errors import Failure, FileError
from sluice_files.hub_refusals import Asked, refusal
from sluice_files.room import fetching_to, require_room

MAX_FILES = 100_000
"""Of one repository."""
_AT_ONCE = 4
_SECONDS = 30.0
_RETRIES = 4
_REVISION = re.compile(r"refs/(?:convert|pr)/[^/]+|[^/]+")
"""A branch, a tag, a commit, or what the hub itself keeps beside them: the one revision with a / in its name."""


@dataclass(frozen=True)
class HubPath:
    """hf://org/name@revision/path, and hf://datasets/org/name@revision/path."""

    repository: str
    revision: str | None
    path: str
    is_dataset: bool = False
    """Whether the address says so; hf://org/name/path is a dataset's too where a dataset is asked for."""

    @classmethod
    def parse(cls, uri: str) -> "HubPath":
        """Take an address apart; the revision is behind the repository's name."""
        rest = uri.removeprefix("hf://").strip("/")
        is_dataset = rest.startswith("datasets/")
        before, at, behind = rest.removeprefix("datasets/").partition("@")
        organisation, _, name = before.partition("/")
        if at:
            found = _REVISION.match(behind)
            revision = found[0] if found else ""
            path = behind.removeprefix(revision).lstrip("/")
        else:
            name, _, path = name.partition("/")
            revision = ""
        return cls(f"{organisation}/{name}".rstrip("/"), revision or None, path, is_dataset)


class HubRepository:
    """One repository at one commit. Raises FileError."""

    def __init__(self, uri: str, credentials: Credentials = NOTHING, *, dataset: bool, revision: str = "") -> None:
        """Asks nobody yet.

        Args:
            uri: hf://...
            credentials: read_credentials of that address.
            dataset: whether a dataset is asked for, or a model.
            revision: a commit to use instead of the address's revision.
        """
        self.uri = uri
        self.path = HubPath.parse(uri)
        self._revision = revision or self.path.revision
        self._credentials = credentials
        self._kind = "dataset" if dataset else "model"
        self._token: str | bool = credentials.first("HF_TOKEN") or False  # False: nor one that is lying about
        mirror = endpoint(uri, credentials, "HF_ENDPOINT")
        self._api = HfApi(endpoint=mirror.geturl() if mirror else None, token=self._token)
        if self.path.is_dataset and not dataset:
            raise FileError(Failure.INVALID, f"{uri} is the address of a dataset. Name a model: hf://org/name.")

    @cached_property
    def commit(self) -> str:
        """The commit that the address's revision is now."""
        with self._asking():
            found = self._api.repo_info(
                self.path.repository, repo_type=self._kind, revision=self._revision, timeout=_SECONDS
            )
            return str(found.sha)

    @cached_property
    def files(self) -> Mapping[str, int]:
        """Every file of the repository, with its bytes."""
        sizes: dict[str, int] = {}
        with self._asking():
            entries = self._api.list_repo_tree(
                self.path.repository, repo_type=self._kind, revision=self.commit, recursive=True
            )
            for entry in entries:
                if isinstance(entry, RepoFile) and _is_inside(entry.path):
                    sizes[entry.path] = entry.size
                if len(sizes) > MAX_FILES:
                    raise FileError(
                        Failure.TOO_LARGE,
                        f"{self.uri}: the repository has more than {MAX_FILES:,} files. Copy what is needed elsewhere.",
                    )
        return sizes

    def fetch(self, names: Iterable[str], cache: Path) -> Path:
        """Download files, unless they are there, and return the folder that they are in; links may lead into `cache`.

        Raises:
            FileError: TooLarge: there is no room for them.
        """
        names = list(names)
        cache.mkdir(parents=True, exist_ok=True)
        here = {"repo_id": self.path.repository, "repo_type": self._kind, "revision": self.commit, "cache_dir": cache}
        missing = [name for name in names if not isinstance(try_to_load_from_cache(filename=name, **here), str)]
        require_room(self.uri, sum(self.files.get(name, 0) for name in missing), cache)

        def download(name: str) -> Path:
            with self._asking(name), fetching_to(cache, self.uri):
                found = Path(self._api.hf_hub_download(filename=name, **here))
                return found.parents[len(PurePosixPath(name).parts) - 1]

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            (folder,) = set(pool.map(download, names))
        return folder

    def read(self, name: str, most: int) -> bytes:
        """A small file of at most so many bytes."""
        if self.files.get(name, 0) > most:
            raise FileError(Failure.TOO_LARGE, f"{self.uri}: {name} has more than {most:,} bytes. Make it smaller.")
        return b"".join(self.ranges(name, [0], most)) if self.files.get(name) else b""

    def ranges(self, name: str, starts: Sequence[int], length: int) -> Iterator[bytes]:
        """Parts of a file, each from its start, as long as asked or to the file's end."""
        url = hf_hub_url(
            self.path.repository, name, repo_type=self._kind, revision=self.commit, endpoint=self._api.endpoint
        )
        headers = build_hf_headers(token=self._token)
        size = self.files[name]

        def part(start: int) -> bytes:
            wanted = min(length, size - start)
            asked = {**headers, "Range": f"bytes={start}-{start + wanted - 1}", "Accept-Encoding": "identity"}
            with (
                self._asking(name),
                http_stream_backoff("GET", url, max_retries=_RETRIES, headers=asked, timeout=_SECONDS) as answer,
            ):
                hf_raise_for_status(answer)
                content = b""
                skip = 0 if answer.status_code == 206 else start  # a server may know no ranges
                for block in answer.iter_bytes():
                    content += block[skip:]
                    skip = max(0, skip - len(block))
                    if len(content) >= wanted:
                        break
                return content[:wanted]

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from pool.map(part, starts)

    @property
    def page(self) -> str:
        """Where a person sees the repository."""
        kind = "datasets/" if self._kind == "dataset" else ""
        return f"https://huggingface.co/{kind}{self.path.repository}"

    @contextmanager
    def _asking(self, name: str = "") -> Iterator[None]:
        """Turn what the library raises into a FileError."""
        try:
            yield
        except (HFValidationError, EntryNotFoundError, httpx2.HTTPError, OSError) as error:
            asked = Asked(self.uri, self.page, self._revision or "main", name, self._api.endpoint, self._credentials)
            raise refusal(error, asked) from None  # its request has the token


def _is_inside(name: str) -> bool:
    """Whether a name stays in its repository. Who answers may be a mirror, so names are not taken on trust."""
    return not name.startswith("/") and ".." not in name.split("/") and "\\" not in name and "\0" not in name
