"""The container `model`: fetches the engine's model into the cache before the agent and vLLM start, and ends.

It alone has model.credentials. What it can't fetch is said in its termination message, which the operator shows in the
engine's condition Ready; the kubelet starts it again.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from sluice_api import pods
from sluice_api.slots import SlotSpec
from sluice_api.sources import is_object, volume_path
from sluice_files.chat_templates import template_text
from sluice_files.credentials import read_credentials
from sluice_files.errors import FileError
from sluice_files.models import fetch_model
from sluice_server.model import Fetched
from sluice_server.paths import SlotPaths

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 20.0
TERMINATION_FILE_ENV = "SLUICE_TERMINATION_FILE"
"""Where the termination message goes instead of pods.TERMINATION_FILE, in tests."""


def run() -> None:
    """Fetch what the slot in the environment needs; exit with 1 and a termination message if that can't be had."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        fetch(SlotSpec.model_validate_json(pods.told(pods.SLOT_ENV)), SlotPaths.here())
    except FileError as error:
        message = error.in_field("spec.model:", "spec.model.credentials")
        termination = Path(os.environ.get(TERMINATION_FILE_ENV, pods.TERMINATION_FILE))
        termination.write_text(message, encoding="utf-8")
        sys.exit(message)


def fetch(slot: SlotSpec, paths: SlotPaths) -> None:
    """Fetch the chat template and the model, as far as they are no files of a volume.

    Raises:
        FileError: one of them can't be had.
    """
    model = slot.spec.model
    shared = paths.at(pods.SHARED)
    shared.mkdir(parents=True, exist_ok=True)
    if model.chat_template and is_object(model.chat_template.uri or ""):
        text = template_text(model.chat_template, model.credentials, paths.at)
        paths.at(pods.FETCHED_TEMPLATE).write_text(text, encoding="utf-8")
    if volume_path(model.uri):
        return
    began = time.monotonic()
    log.info("fetching %s", model.uri)
    with _progress(paths.cache):
        found = fetch_model(model.uri, paths.cache, read_credentials(model.credentials, model.uri))
    folder = PurePosixPath("/") / found.folder.relative_to(paths.root)
    log.info("%s is in %s after %.0f s", model.uri, folder, time.monotonic() - began)
    record = Fetched(folder=folder, fingerprint=found.fingerprint)
    paths.at(pods.FETCHED_FILE).write_text(record.to_json(), encoding="utf-8")


@contextmanager
def _progress(cache: Path) -> Iterator[None]:
    """Log every few seconds how many bytes have come."""
    before, done = _size(cache), threading.Event()

    def tell() -> None:
        while not done.wait(_PROGRESS_SECONDS):
            log.info("%.1f GiB so far", (_size(cache) - before) / 2**30)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _size(folder: Path) -> int:
    """Bytes that the files of a folder take; those that go meanwhile do not count."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(parent, name)).st_blocks * 512  # noqa: PTH118 - many files
            except FileNotFoundError:
                continue
    return size
