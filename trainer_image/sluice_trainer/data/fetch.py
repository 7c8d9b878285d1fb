"""Finds or downloads the files that a dataset's addresses name."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sluice_api import sources
from sluice_api.dataset import RowFiles
from sluice_api.reasons import Reason
from sluice_api.sources import VolumePath, config_map_key, has_wildcard, is_object, volume_path
from sluice_files.credentials import Credentials, read_credentials
from sluice_files.errors import Failure, FileError
from sluice_files.inside import LeadsOutside, read_inside
from sluice_files.patterns import matching, split_pattern
from sluice_files.room import require_room
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.errors import StageError, fetching
from sluice_trainer.paths import mounted, mounted_config_map, resolve_in_claim, scratch_folder, why_not_found

MAX_FILES = 10_000
"""Of one address."""
MAX_SMALL_BYTES = 2**20
_AT_ONCE = 4
_SHOWN = 8


def dataset_name(uri: str) -> str:
    """The address as messages show it: claim/path for a volume."""
    return sources.shown(uri).removeprefix("pvc://")


def row_files(files: RowFiles, field: str) -> list[RowFile]:
    """The files that an address names, sorted by name, downloaded if need be. At least one of them is not empty.

    Args:
        files: the address, what opens it, and which part of a hub's dataset is meant.
        field: where the address is: dataset.uri, dataset.sources[0].uri, dataset.validation.uri.

    Raises:
        StageError: DatasetNotFound, DatasetEmpty, and those of errors.fetching.
    """
    uri = files.uri or ""
    with fetching(field, _credentials_field(field), Reason.DATASET_NOT_FOUND):
        opened = read_credentials(files.credentials, uri)
        found = sorted(_found(files, uri, field, opened), key=lambda file: file.name)
    if len(found) > MAX_FILES:
        raise StageError(
            Reason.SOURCE_UNUSABLE,
            f"{field} {uri} means {len(found):,} files, and {MAX_FILES:,} are read. Put more rows into each, or name "
            "fewer.",
        )
    if not any(file.path.stat().st_size for file in found):
        empty = "is an empty file" if len(found) == 1 else f"means {len(found)} files, and all are empty"
        name = dataset_name(uri) if has_wildcard(uri) else found[0].name
        raise StageError(Reason.DATASET_EMPTY, f"{name} {empty}. Write one JSON object a line.")
    return found


def small_file(
    uri: str, field: str, credentials: sources.Credentials | None, credentials_field: str, not_found: Reason
) -> bytes:
    """The content of one small file, such as a chat template or a list of words.

    Args:
        uri: pvc://claim/path, s3://bucket/path (gs:// and az:// too) or configmap://name/key.
        field: where the address is: model.chatTemplate.uri.
        credentials: what opens it, if it is in an object store.
        credentials_field: where that is named: model.credentials.
        not_found: the reason where nothing is there.

    Raises:
        StageError: `not_found`, and those of errors.fetching; it has more than MAX_SMALL_BYTES.
    """
    if is_object(uri):
        from sluice_files.objects import ObjectFolder, folder_and_name

        folder, name = folder_and_name(uri)
        with fetching(field, credentials_field, not_found):
            content = ObjectFolder(folder, read_credentials(credentials, uri)).read(name)
    else:
        (file,) = _in_config_map(uri, field, not_found) if config_map_key(uri) else _in_claim(uri, field, not_found)
        try:
            content = read_inside(file.path, file.path, MAX_SMALL_BYTES + 1)  # as it was found, without links
        except LeadsOutside:
            raise StageError(not_found, f"{field} {uri} was replaced by a link. Put the file itself there.") from None
    if len(content) > MAX_SMALL_BYTES:
        raise StageError(not_found, f"{field} {uri} has more than {MAX_SMALL_BYTES:,} bytes. Make it smaller.")
    return content


def _credentials_field(field: str) -> str:
    return f"{field.removesuffix('uri')}credentials"


def _found(files: RowFiles, uri: str, field: str, opened: Credentials) -> list[RowFile]:
    if volume_path(uri) is not None:
        return _in_claim(uri, field, Reason.DATASET_NOT_FOUND)
    if config_map_key(uri) is not None:
        return _in_config_map(uri, field, Reason.DATASET_NOT_FOUND)
    scratch = scratch_folder("dataset") / hashlib.sha256(uri.encode()).hexdigest()[:16]
    scratch.mkdir(exist_ok=True)
    if uri.startswith("https://"):
        from sluice_trainer.data import remote

        return [RowFile(remote.fetch(uri, scratch / "rows", field).resolve(), sources.shown(uri))]
    return _on_the_hub(files, uri, scratch, opened) if uri.startswith("hf://") else _objects(uri, scratch, opened)


def _on_the_hub(files: RowFiles, uri: str, scratch: Path, opened: Credentials) -> list[RowFile]:
    from sluice_files.hub import HubPath
    from sluice_files.hub_datasets import dataset_files

    found = dataset_files(uri, scratch, opened, files.config, files.split)
    repository = HubPath.parse(uri).repository
    return [RowFile(file.path, f"hf://datasets/{repository}/{file.name}") for file in found]


def _objects(uri: str, scratch: Path, opened: Credentials) -> list[RowFile]:
    from sluice_files.objects import ObjectFolder

    scheme, _, rest = uri.partition("://")
    bucket, _, path = rest.partition("/")
    folder, pattern = split_pattern(path)
    source = ObjectFolder(f"{scheme}://{bucket}/{folder}", opened)
    if not has_wildcard(uri):
        if not source.exists(pattern) and (below := source.names(pattern)):
            raise _is_folder(uri, [file.name.removeprefix(f"{pattern}/") for file in below])
        source.fetch(pattern, scratch / pattern)
        return [RowFile((scratch / pattern).resolve(), uri)]
    there = {file.name: file for file in source.names()}
    wanted = [there[name] for name in matching(pattern, there)]
    if not wanted:
        raise FileError(
            Failure.NOT_FOUND, f"{uri} means no file with rows. {_listed(source.uri, list(there))} Correct the address."
        )
    require_room(uri, sum(file.size for file in wanted), scratch)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda file: source.fetch(file.name, scratch / file.name), wanted))
    return [RowFile((scratch / file.name).resolve(), f"{source.uri}/{file.name}") for file in wanted]


def _in_claim(uri: str, field: str, not_found: Reason) -> list[RowFile]:
    path = volume_path(uri)
    if path is None:
        raise StageError(not_found, f"{field} {uri} is no pvc:// address. Correct it.")
    if not has_wildcard(uri):
        return [_one_in_claim(uri, path, field, not_found)]
    folder, pattern = split_pattern(path.path)
    top = resolve_in_claim(VolumePath(path.claim, folder))
    if top is None:
        raise StageError(
            not_found, f"{field} {uri}: {why_not_found(VolumePath(path.claim, folder), 'folder')} Correct {field}."
        )
    there = dict(_files_below(top))
    claim = mounted(VolumePath(path.claim, "")).resolve()
    found = []
    for name in matching(pattern, there):
        file, shown = there[name].resolve(), _shown(name)
        if not file.is_relative_to(claim) or not file.is_file():
            raise StageError(
                not_found,
                f"{field} {uri}: {shown} is a link that leads out of the claim, or nowhere, or is a pipe, a socket "
                "or a device, and is not read. Put the file itself there.",
            )
        found.append(RowFile(file, "/".join(filter(None, (path.claim, folder, shown)))))
    if not found:
        where = f"{path.claim}/{folder}".rstrip("/")
        raise StageError(not_found, f"{field} {uri} means no file. {_listed(where, list(there))} Correct {field}.")
    return found


def _one_in_claim(uri: str, path: VolumePath, field: str, not_found: Reason) -> RowFile:
    file = resolve_in_claim(path)
    if file is None:
        raise StageError(not_found, f"{field} {uri}: {why_not_found(path, 'file')} Correct {field}.")
    if file.is_dir():
        children = [child.name for child in file.iterdir() if child.is_file()]
        raise StageError(not_found, f"{field} {_is_folder(uri, children).message}")
    if not file.is_file():
        raise StageError(not_found, f"{field} {uri} is a pipe, a socket or a device. Put a file there.")
    return RowFile(file, dataset_name(uri))


def _files_below(top: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder, with its name there. A link to a folder is not gone into."""
    for parent, folders, names in os.walk(top):
        folders.sort()
        for name in names:
            path = Path(parent, name)
            yield str(path.relative_to(top)), path


def _in_config_map(uri: str, field: str, not_found: Reason) -> list[RowFile]:
    key = config_map_key(uri)
    if key is None:
        raise StageError(not_found, f"{field} {uri} is no configmap:// address. Correct it.")
    folder = mounted_config_map(key)
    file = (folder / key.key).resolve()
    if not file.is_file() or not file.is_relative_to(folder.resolve()):
        keys = sorted(each.name for each in folder.iterdir() if each.is_file()) if folder.is_dir() else []
        has = (
            f"the ConfigMap {key.name} has no key {key.key}; it has: {', '.join(keys[:_SHOWN])}"
            if keys
            else f"there is no ConfigMap {key.name} in this namespace, or it is empty"
        )
        raise StageError(
            not_found,
            f"{field} {uri}: {has}. Correct {field}, or create it: kubectl create configmap {key.name} "
            f"--from-file={key.key}",
        )
    return [RowFile(file, uri)]


_SAVED = {"state.json": "data-*.arrow", "dataset_dict.json": "train/data-*.arrow"}
"""A file that only datasets' save_to_disk writes, and which of those beside it have rows: a map leaves others there."""


def _is_folder(uri: str, there: list[str]) -> FileError:
    rows = next((rows for name, rows in _SAVED.items() if name in there), "*")
    return FileError(
        Failure.NOT_FOUND,
        f"{uri} is a folder. {_listed('It', there)} Name one file of it, or several: {uri.rstrip('/')}/{rows}",
    )


def _listed(where: str, names: list[str]) -> str:
    shown = ", ".join(map(_shown, sorted(names)[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"{where} has: {shown}." if names else f"{where} has no file."


def _shown(name: str) -> str:
    r"""The name of a file as a text: a byte that is no UTF-8, as of Latin-1, becomes its number, such as \xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
