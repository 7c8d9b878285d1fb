"""hf://datasets/ addresses: which files of a repository are a configuration and a split of it, and those alone fetched.

The library `datasets` resolves them, by the README's metadata and by the names of the files. It is given a folder with
the same names and nothing in them, so that it runs no code, asks nobody and downloads nothing.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sluice_files.credentials import NOTHING, Credentials
from sluice_files.errors import Failure, FileError
from sluice_files.hub import HubRepository
from sluice_files.patterns import matching

CONVERTED = "refs/convert/parquet"
"""Where the hub keeps what it has made of a dataset: <configuration>/<split>/*.parquet."""
DEFAULT_SPLIT = "train"

_README = "README.md"
_METADATA = (_README, ".huggingface.yaml")
_MAX_METADATA_BYTES = 4 * 2**20
_ARCHIVES = (".zip", ".tar", ".7z", ".rar")
"""What the library would open to see what is in it."""
_LEFT_OUT = ("dataset_infos.json",)
"""What it would read, and needs for nothing here."""
_SHOWN = 12


@dataclass(frozen=True)
class FetchedFile:
    """A file on this machine's disk."""

    path: Path
    """Without links."""
    name: str
    """In its repository or folder, such as data/train-00000-of-00001.parquet."""


def dataset_files(
    uri: str, cache: Path, credentials: Credentials = NOTHING, config: str | None = None, split: str | None = None
) -> list[FetchedFile]:
    """Fetch the files of a split of a dataset, or the files that the address's own path means, sorted by name.

    Args:
        uri: hf://datasets/org/name@revision, with or without a path or a pattern behind it.
        cache: a folder on this machine's disk.
        credentials: read_credentials of that address.
        config: of a whole repository. None: its only one, or the one that it calls its default.
        split: of a whole repository. None: train.

    Raises:
        FileError: NotFound names the configurations and splits, or the files, that are there.
    """
    repository = HubRepository(uri, credentials, dataset=True)
    if path := repository.path.path:
        if config or split:
            raise FileError(
                Failure.INVALID,
                f"{uri} names files, and config and split choose among all files of a repository. Leave them out, or "
                f"name the repository alone: hf://datasets/{repository.path.repository}",
            )
        names = matching(path, repository.files)
    elif (repository.path.revision or "").startswith(CONVERTED):
        names = _converted(repository, config, split or DEFAULT_SPLIT)
    else:
        names = _split_files(repository, config, split or DEFAULT_SPLIT)
    if not names:
        below = [name for name in repository.files if name.startswith(f"{path.rstrip('/')}/")]
        remedy = f"It is a folder: write {uri.rstrip('/')}/* for its files." if below else "Correct the address."
        there = below or list(repository.files)
        raise FileError(Failure.NOT_FOUND, f"{uri}: there is no file {path}. {_listed('There is', there)} {remedy}")
    folder = repository.fetch(names, cache)
    return [FetchedFile((folder / name).resolve(), name) for name in names]


def _converted(repository: HubRepository, config: str | None, split: str) -> list[str]:
    """The files of the hub's own conversion to Parquet, whose names say what they are."""
    files = [PurePosixPath(name) for name in repository.files if name.endswith(".parquet")]
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(files):
        if len(file.parts) == 3:
            found.setdefault(file.parts[0], {}).setdefault(file.parts[1], []).append(str(file))
    chosen = _one_config(repository, list(found), config, "default" if "default" in found else None)
    return _one_split(repository, found[chosen], split)


def _split_files(repository: HubRepository, config: str | None, split: str) -> list[str]:
    files = repository.files
    script = f"{repository.path.repository.rpartition('/')[2]}.py"
    if script in files:
        raise FileError(
            Failure.INVALID,
            f"{repository.uri}: the repository makes its rows by a program ({script}), which is never run. Use what "
            f"the hub has made of them: hf://datasets/{repository.path.repository}@{CONVERTED}",
        )
    metadata = {name: repository.read(name, _MAX_METADATA_BYTES) for name in _METADATA if files.get(name)}
    if not metadata.get(_README, b"").startswith(b"---"):
        metadata.pop(_README, None)  # it is for people only
    with tempfile.TemporaryDirectory() as scratch:
        return _one_split(repository, _resolved(repository, Path(scratch), metadata, config), split)


def _resolved(
    repository: HubRepository, scratch: Path, metadata: Mapping[str, bytes], config: str | None
) -> Mapping[str, list[str]]:
    """The files of each split of a configuration, by the rules of the library `datasets`."""
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError

    folder = scratch / "repository"
    folder.mkdir()
    for name, content in metadata.items():
        (folder / name).write_bytes(content)
    configs, default = _configs(repository, metadata)
    if configs:
        config = _one_config(repository, configs, config, default)
    elif config not in (None, "default"):
        raise _no_such(repository, "configuration", config, ["default"])
    for name in repository.files:
        if name not in metadata and name not in _LEFT_OUT and not name.endswith((".py", *_ARCHIVES)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    try:
        builder = load_dataset_builder(str(folder), name=config, cache_dir=str(scratch / "cache"))
        resolved: Mapping[str, list[str]] = builder.config.data_files or {}
        root = folder.resolve()
        return {
            str(split): sorted(str(Path(file).relative_to(root)) for file in found) for split, found in resolved.items()
        }
    except (DatasetsError, OSError, ValueError, TypeError, AttributeError) as error:
        said = str(error).partition("\n")[0].replace(str(folder), "").strip()[:200]
        raise FileError(
            Failure.INVALID,
            f"{repository.uri}: which of its files have rows can't be told: {said}. "
            f"{_listed('There is', list(repository.files))} Name them: {repository.uri}/<file>, with * if need be.",
        ) from error


def _configs(repository: HubRepository, metadata: Mapping[str, bytes]) -> tuple[list[str], str | None]:
    """The configurations that the metadata names, and the default one.

    Raises:
        FileError: Invalid: it names files elsewhere, which the library would fetch or read.
    """
    import yaml
    from huggingface_hub import DatasetCard

    try:
        fields: dict[str, Any] = {}
        if _README in metadata:
            fields |= DatasetCard(metadata[_README].decode("utf-8"), ignore_metadata_errors=False).data.to_dict()
        if (own := metadata.get(_METADATA[1])) is not None:
            fields |= yaml.safe_load(own) or {}
        configs = {str(each["config_name"]): each for each in fields.get("configs") or ()}
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise FileError(
            Failure.INVALID,
            f"{repository.uri}: the metadata of its README.md can't be read: {str(error).splitlines()[0][:200]}. Name "
            f"files instead: {repository.uri}/<file>",
        ) from error
    for each in configs.values():
        for pattern in _texts([each.get("data_files"), each.get("data_dir")]):
            if _leads_away(pattern):
                raise FileError(
                    Failure.INVALID,
                    f"{repository.uri}: its README.md names files that are not its own ({pattern[:100]}), which are "
                    f"not fetched. Name that address itself, or files: {repository.uri}/<file>",
                )
    defaults = [name for name, each in configs.items() if each.get("default") or name == "default" or len(configs) == 1]
    return list(configs), defaults[0] if defaults else None


def _leads_away(pattern: str) -> bool:
    """Whether the library would look elsewhere than in the repository. It takes whatever has a : for an address."""
    return ":" in pattern or "\\" in pattern or pattern.startswith(("/", "~")) or ".." in pattern.split("/")


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value of YAML, which may name a part of itself a thousand times, or be in itself."""
    seen, left = set[int](), [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict | list) and id(each) not in seen:
            seen.add(id(each))
            left.extend(each.values() if isinstance(each, dict) else each)


def _one_config(repository: HubRepository, configs: list[str], config: str | None, default: str | None) -> str:
    chosen = config or default or (configs[0] if len(configs) == 1 else None)
    if chosen in configs:
        return chosen
    if chosen is not None:
        raise _no_such(repository, "configuration", chosen, configs)
    raise FileError(
        Failure.NOT_FOUND,
        f"{repository.uri} has several configurations. Choose one by config: {', '.join(sorted(configs)[:_SHOWN])}.",
    )


def _one_split(repository: HubRepository, splits: Mapping[str, list[str]], split: str) -> list[str]:
    if found := splits.get(split):
        return sorted(found)
    raise _no_such(repository, "split", split, list(splits))


def _no_such(repository: HubRepository, what: str, name: str | None, there: list[str]) -> FileError:
    field = "config" if what == "configuration" else "split"
    return FileError(
        Failure.NOT_FOUND, f"{repository.uri} has no {what} {name}. {_listed('It has', there)} Correct {field}."
    )


def _listed(verb: str, names: list[str]) -> str:
    if not names:
        return f"{verb} none."
    return f"{verb}: {', '.join(sorted(names)[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}."
