"""The text of a spec's chat template: a built-in one of this folder, a file, or what the spec has inline."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from sluice_api import sources
from sluice_api.chat_template import ChatTemplate, TemplateName
from sluice_api.sources import CONFIG_MAPS, VOLUMES, config_map_key, volume_path
from sluice_files.credentials import read_credentials
from sluice_files.errors import Failure, FileError
from sluice_files.inside import LeadsOutside, read_inside
from sluice_files.objects import ObjectFolder, folder_and_name

MAX_BYTES = 2**18
"""Of a template's file. The longest that models bring have less than half of it."""


def template_text(
    template: ChatTemplate,
    credentials: sources.Credentials | None,
    mounted: Callable[[PurePosixPath], Path],
) -> str:
    """The text of a chat template.

    Args:
        template: of a spec.
        credentials: the spec's, for a file in an object store.
        mounted: where this process sees a path of the pods' contract, such as /volumes/<claim>.

    Raises:
        FileError: the file is not there, can't be had, or is no text of at most MAX_BYTES.
    """
    if template.name is not None:
        return builtin(template.name)
    if template.inline is not None:
        return template.inline
    uri = template.uri or ""
    try:
        content = _content(uri, credentials, mounted)
    except OSError as error:
        raise _unusable(uri, f"it can't be read ({error.strerror})", Failure.NOT_FOUND) from error
    if len(content) > MAX_BYTES:
        raise _unusable(uri, f"it has more than {MAX_BYTES} bytes, which no chat template needs", Failure.TOO_LARGE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unusable(uri, "it is no UTF-8 text") from error
    if not text.strip():
        raise _unusable(uri, "it is empty")
    return text


def builtin(name: TemplateName) -> str:
    """The text of a built-in template. Each ends an answer with the tokenizer's eos_token, at which serving stops."""
    return (Path(__file__).parent / f"{name.lower()}.jinja").read_text(encoding="utf-8").rstrip("\n")


def _content(uri: str, credentials: sources.Credentials | None, mounted: Callable[[PurePosixPath], Path]) -> bytes:
    """At most one byte more than MAX_BYTES of a file's content."""
    if in_claim := volume_path(uri):
        return _read(uri, mounted(VOLUMES / in_claim.claim), mounted(in_claim.mounted))
    if key := config_map_key(uri):
        return _read(uri, mounted(CONFIG_MAPS / key.name), mounted(key.mounted))
    folder, name = folder_and_name(uri)
    return ObjectFolder(folder, read_credentials(credentials, uri)).read(name)


def _read(uri: str, root: Path, path: Path) -> bytes:
    if not path.exists():
        raise _unusable(uri, "there is no such file", Failure.NOT_FOUND)
    try:
        return read_inside(root.resolve(), path, MAX_BYTES + 1)
    except LeadsOutside:
        raise _unusable(uri, "it is a link that leads out of its volume, which is not followed") from None


def _unusable(uri: str, why: str, failure: Failure = Failure.INVALID) -> FileError:
    return FileError(failure, f"{uri}: {why}. Correct model.chatTemplate.uri, or the file.")
