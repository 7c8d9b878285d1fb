"""A real S3 server over a folder, for tests: versitygw."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from dev.cluster import binaries
from dev.cluster.ports import free_port

KEY = "AKIATESTSTESTSTESTS1"
SECRET = "not-a-secret-but-a-test-0123456789ab"
REGION = "eu-test-1"
_PATIENCE_SECONDS = 30


@dataclass(frozen=True)
class ObjectStore:
    """A server with one owner, and its buckets as folders."""

    endpoint: str
    folder: Path
    secret_key: str = SECRET

    def bucket(self, name: str) -> Path:
        """Make a bucket, if it isn't there. The files of its folder are its objects."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def secret(self) -> dict[str, str]:
        """The keys of a Secret that opens it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
        }


@contextmanager
def object_store(folder: Path, address: str = "127.0.0.1", more: Sequence[str] = ()) -> Iterator[ObjectStore]:
    """Serve a folder of buckets until the block ends. It is built first, once on each machine.

    Args:
        more: versitygw's own flags.
    """
    binaries.build_object_store()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port(address)
    words = ["--port", f"{address}:{port}", "--access", KEY, "--secret", SECRET, "--region", REGION, "--keep-alive"]
    server = subprocess.Popen(
        [binaries.OBJECT_STORE.path("versitygw"), *words, *more, "--quiet", "posix", folder],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        endpoint = f"http://{address}:{port}"
        _wait_until_it_answers(server, endpoint)
        yield ObjectStore(endpoint, folder)
    finally:
        server.terminate()
        server.wait(_PATIENCE_SECONDS)


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", endpoint: str) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urlopen(endpoint)
        except HTTPError:  # it asks who we are
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"versitygw does not answer at {endpoint} (exit code {server.poll()})")


def write_secret(secrets: Path, name: str, values: dict[str, str]) -> None:
    """Mount a Secret, as the kubelet does: each key is a link to a file in a folder that a link names."""
    content = secrets / name / "..2026_11_30"
    content.mkdir(parents=True)
    (secrets / name / "..data").symlink_to(content.name)
    for key, value in values.items():
        (content / key).write_text(value)
        (secrets / name / key).symlink_to(Path("..data", key))
