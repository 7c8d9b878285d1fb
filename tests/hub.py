"""A stand-in of the Hugging Face hub on this machine: it answers what huggingface_hub asks, as the hub does.

Repositories are folders below models/ and datasets/. Large files are sent by another address that the answer leads to,
as the hub's content network is, and that must be asked without the token.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1024
"""Bytes from which a file is kept beside git, as LFS does."""
TOKEN = "hf_standInTokenOfTheTests0123456789"
STRANGER = "hf_aTokenOfSomebodyWithoutAccess0123"
LIMITED = "hf_aFineGrainedTokenOfTheOwner012345"
"""It may not read public gated repositories."""


@dataclass
class Repository:
    """A model or a dataset."""

    folder: Path
    gated: bool = False
    private: bool = False
    branches: dict[str, Path] = field(default_factory=dict)
    """Other revisions than main, with their folders."""

    def files(self, revision: str) -> dict[str, Path] | None:
        """The files of a revision, or of a commit; None if there is no such one."""
        folders = {"main": self.folder, **self.branches}
        by_commit = {self.commit(name): folder for name, folder in folders.items()}
        folder = folders.get(revision) or by_commit.get(revision)
        if folder is None:
            return None
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def commit(self, revision: str) -> str | None:
        """The commit of a revision, which other bytes change."""
        folder = {"main": self.folder, **self.branches}.get(revision)
        if folder is None:
            return revision if self.files(revision) is not None else None
        parts = [f"{path.relative_to(folder)} {_digest(path)}" for path in sorted(folder.rglob("*")) if path.is_file()]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


@dataclass
class Hub:
    """The stand-in, and what it was asked."""

    root: Path
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Authorization of each request."""
    endpoint: str = ""
    elsewhere: str = ""
    """The address of another server, to which every answer leads."""
    down: bool = False
    """It answers 503 to everything."""

    def add(self, name: str, files: Mapping[str, str | bytes], kind: str = "models", **options: Any) -> Repository:
        """Make a repository with these files."""
        folder = self.root / kind / name
        write_files(folder, files)
        return self.repositories.setdefault((kind, name), Repository(folder, **options))

    def branch(self, repository: Repository, name: str, files: Mapping[str, str | bytes]) -> None:
        """Make a revision of a repository."""
        folder = self.root / "branches" / f"{repository.folder.name}-{len(repository.branches)}"
        write_files(folder, files)
        repository.branches[name] = folder

    @property
    def secret(self) -> dict[str, str]:
        """The keys of a Secret that opens it."""
        return {"HF_TOKEN": TOKEN, "HF_ENDPOINT": self.endpoint}

    @property
    def downloaded(self) -> list[str]:
        """The files that were sent, each once."""
        gets = [re.search(r"/resolve/[^/]+/(.+)", path) for method, path, _ in self.asked if method == "GET"]
        return sorted({unquote(found[1]) for found in gets if found})


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files with their folders."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    """Serve until the block ends."""
    stand_in = Hub(root)

    class Handler(_Handler):
        hub = stand_in

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in.endpoint = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    @cached_property
    def _path(self) -> str:
        return urlsplit(self.path).path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.__dict__.pop("_path", None)
        authorization = self.headers.get("Authorization")
        self.hub.asked.append((self.command, self._path, authorization))
        if self.hub.down or self.hub.elsewhere:
            leads_to = {"Location": self.hub.elsewhere + self.path} if self.hub.elsewhere else {}
            return self._send(307 if leads_to else 503, b"", leads_to)
        if self._path.startswith("/content/"):
            return self._content(authorization)
        kind, name, action, revision, file = _parts(self._path)
        if authorization not in (None, *(f"Bearer {token}" for token in (TOKEN, STRANGER, LIMITED))):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        repository = self.hub.repositories.get((kind, name))
        owner = authorization == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not owner):
            return self._refuse(404 if authorization else 401, "RepoNotFound", "Repository not found")
        files, commit = repository.files(revision), repository.commit(revision)
        if files is None or commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if action == "info":
            siblings = [{"rfilename": each} for each in files]
            return self._send_json({"id": name, "modelId": name, "sha": commit, "siblings": siblings})
        if action == "tree":
            return self._send_json([_entry(each, path) for each, path in files.items()])
        if repository.gated and not owner:
            return self._refuse_gated(authorization)
        if file not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        return self._file(files[file], commit)

    def _file(self, path: Path, commit: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(path)}"', "Accept-Ranges": "bytes"}
        if path.stat().st_size < LARGE:
            return self._send_part(path, headers)
        target = f"/content/{path.relative_to(self.hub.root)}?Signature=signedForAMoment"
        linked = {"X-Linked-Size": str(path.stat().st_size), "X-Linked-ETag": headers["ETag"]}
        host = self.hub.endpoint.replace("127.0.0.1", "localhost")
        return self._send(302, b"", {**headers, **linked, "Location": host + target})

    def _content(self, authorization: str | None) -> None:
        if authorization is not None:
            return self._send(400, b"Only one auth mechanism is allowed")
        path = self.hub.root / unquote(self._path.removeprefix("/content/"))
        return self._send_part(path, {"ETag": f'"{_digest(path)}"'})

    def _send_part(self, path: Path, headers: Mapping[str, str]) -> None:
        content = path.read_bytes()
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2] or len(content) - 1), len(content) - 1)
            part = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
            return self._send(206, content[start : end + 1], {**headers, **part})
        return self._send(200, content, headers)

    def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        said = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._send(status, json.dumps({"error": message}).encode(), said)

    def _refuse_gated(self, authorization: str | None) -> None:
        if authorization == f"Bearer {LIMITED}":
            where = "in your fine-grained token settings to view this repository."
            return self._refuse(403, "", f"Please enable access to public gated repositories {where}")
        return self._refuse(403 if authorization else 401, "GatedRepo", "Access to this repository is restricted.")

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _parts(path: str) -> tuple[str, str, str, str, str]:
    """Kind, name, what is asked, revision and file of a path of the hub's API."""
    asks = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<rev>[^/]+).*)?"
    if found := re.fullmatch(asks, path):
        action = {"tree": "tree"}.get(found["what"], "info")
        return found["kind"], found["name"], action, unquote(found["rev"] or "main"), ""
    files = r"/(?P<dataset>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)"
    if found := re.fullmatch(files, path):
        kind = "datasets" if found["dataset"] else "models"
        return kind, found["name"], "resolve", unquote(found["rev"]), unquote(found["file"])
    return "", "", "", "", ""


def _entry(name: str, path: Path) -> dict[str, Any]:
    size, digest = path.stat().st_size, _digest(path)
    entry = {"type": "file", "oid": digest[:40], "size": size, "path": name}
    lfs = {"oid": digest, "size": size, "pointerSize": 135}
    return {**entry, "lfs": lfs} if size >= LARGE else entry


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
