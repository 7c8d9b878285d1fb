"""Weights as pickles (*.bin), as older models have them: read without running what is in them, and written once as
safetensors, which is what Train, Export and the checks of Prepare read.
"""

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from sluice_api.artifacts import MANIFEST, model_fingerprint, weight_files
from sluice_api.model import Model
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageSpec
from sluice_trainer import base_model, durable, logs
from sluice_trainer.base_model import BaseModel
from sluice_trainer.errors import StageError
from sluice_trainer.work import work_of
from sluice_trainer.work_folder import WorkFolder

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "model"
"""In a job's work folder."""
_FILE_BYTES = 2**29
"""Most of one file, unless one tensor has more: so much is in memory at once."""
_MOST_IN_MEMORY = 2 * 2**30
"""Of one file that can't be read in parts: Prepare's pod has 4 GiB."""
_MOST_NAMES = 8
"""How much larger than its files all tensors may be: tied ones share their bytes, and are written once for each name.
More is no model, but fills the volume."""
_COPIED = ("config.json", "generation_config.json")


class ConvertedManifest(Model):
    """model/manifest.json, written last: of which model's pickles the safetensors are."""

    base_model_fingerprint: str
    files: dict[str, str]
    """Every file but this one, with its sha256."""
    fingerprint: str
    """model_fingerprint of the folder itself."""


def convert(base: BaseModel, work: WorkFolder) -> BaseModel:
    """The model with its weights as safetensors, which are written into the job's folder unless they are
    there already.

    Raises:
        StageError: ModelInvalid: a pickle is damaged, or has something else in it than tensors.
        OSError: the folder can't be written.
    """
    folder = work.folder / FOLDER
    if not base.has_pickles or _is_whole(base, work.fetch(folder)):
        return converted(base, folder)
    with work.new_folder(folder) as unfinished:
        for name in _COPIED:
            if (base.folder / name).is_file():
                shutil.copyfile(base.folder / name, unfinished / name)
        _write(base, unfinished)
        manifest = ConvertedManifest(
            base_model_fingerprint=base.fingerprint,
            files=durable.digests(unfinished),
            fingerprint=model_fingerprint(unfinished),
        )
        (unfinished / MANIFEST).write_text(durable.sealed(manifest))
    logs.info("weights converted to safetensors", files=len(list(folder.glob("*.safetensors"))))
    return replace(base, weights=folder)


def locate(stage: StageSpec, revision: str) -> BaseModel:
    """The model of a stage after Prepare, with its weights as safetensors. Pickles that Prepare has converted need not
    be fetched a second time.

    Raises:
        StageError: as base_model.locate; TrainerFailed: what Prepare has written is not there, or is damaged.
    """
    work, source = work_of(stage), stage.spec.model
    folder = work.fetch(work.folder / FOLDER)
    return converted(base_model.locate(source.uri, revision, source.credentials, weights=not folder.exists()), folder)


def converted(base: BaseModel, folder: Path) -> BaseModel:
    """The model with its weights as safetensors, which Prepare has written into `folder` if it has pickles.

    Raises:
        StageError: TrainerFailed: they are not there, or are damaged.
    """
    if not base.has_pickles:
        return base
    if not _is_whole(base, folder):
        raise StageError(
            Reason.TRAINER_FAILED,
            f"The weights in {folder}, which Prepare made of model.uri {base.uri}, are missing or damaged. Let Prepare "
            "make them anew: without a cluster, run the same command without --only; in a cluster, delete the job and "
            "create it again.",
            ExitCode.INTERNAL,
        )
    return replace(base, weights=folder)


def _is_whole(base: BaseModel, folder: Path) -> bool:
    manifest = durable.read_manifest(folder, ConvertedManifest)
    if manifest is None or manifest.base_model_fingerprint != base.fingerprint:
        return False
    try:
        return model_fingerprint(folder) == manifest.fingerprint
    except (FileNotFoundError, ValueError):
        return False


def _write(base: BaseModel, folder: Path) -> None:
    """Write all tensors into files of some size, and an index of them, as transformers reads it."""
    from safetensors.torch import save_file

    where: dict[str, str] = {}
    size = 0
    for number, part in enumerate(_parts(_tensors(base))):
        file = f"model-{number:05d}.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
        size += sum(tensor.nbytes for tensor in part.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))


def _parts(tensors: Iterator[tuple[str, "Tensor"]]) -> Iterator[dict[str, "Tensor"]]:
    """Tensors in parts of at most _FILE_BYTES."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if part and sum(each.nbytes for each in part.values()) + tensor.nbytes > _FILE_BYTES:
            yield part
            part = {}
        # A copy: of tensors that share their bytes, as tied embeddings do, safetensors takes none.
        part[name] = tensor.detach().clone(memory_format=_contiguous())
    if part:
        yield part


def _contiguous() -> Any:
    import torch

    return torch.contiguous_format


def _tensors(base: BaseModel) -> Iterator[tuple[str, "Tensor"]]:
    """Each tensor of the pickles with its name.

    Raises:
        StageError: ModelInvalid.
    """
    names = weight_files(path.name for path in base.folder.iterdir())
    most = _MOST_NAMES * sum((base.folder / name).stat().st_size for name in names)
    for name in names:
        content = _read(base, base.folder / name)
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise _invalid(base, f"{name} is no table of tensors by name")
        for key, tensor in content.items():
            if not _is_plain(tensor):
                raise _invalid(
                    base, f"{name} is no table of tensors by name: {key!r} is none, or one without its bytes"
                )
            if tensor.nbytes > (stored := tensor.untyped_storage().nbytes()):
                raise _invalid(base, f"{name}: {key!r} claims {tensor.nbytes:,} bytes, and {stored:,} are stored of it")
            most -= tensor.nbytes
            if most < 0:
                raise _invalid(base, f"its tensors are more than {_MOST_NAMES} times as large as its files")
            yield key, tensor


def _is_plain(value: object) -> "TypeGuard[Tensor]":
    """Whether a value is a tensor that safetensors can hold: none without bytes, sparse, or with scales beside it."""
    import torch

    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and isinstance(value, torch.Tensor)
        and (value.layout, value.device.type, value.is_quantized) == (torch.strided, "cpu", False)
    )


def _read(base: BaseModel, file: Path) -> Any:
    import torch

    is_archive = zipfile.is_zipfile(file)
    if not is_archive and file.stat().st_size > _MOST_IN_MEMORY:
        raise _invalid(
            base,
            f"{file.name} is of torch before 1.6, which is read as a whole, and has more than "
            f"{_MOST_IN_MEMORY // 2**30} GiB",
        )
    try:
        # From an archive, as torch has written them since 1.6, tensors are read when they are needed.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {found[1]}" if found else "has more in it than tensors"
        raise _invalid(base, f"{file.name} is a pickle that {what}, and code in a pickle is never run") from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise _invalid(base, f"{file.name} can't be read: {str(error).splitlines()[0]}") from error


def _invalid(base: BaseModel, why: str) -> StageError:
    return StageError(
        Reason.MODEL_INVALID,
        f"model.uri {base.uri}: {why}. Save the weights as *.safetensors (save_pretrained does): then "
        "no *.bin is read.",
    )
