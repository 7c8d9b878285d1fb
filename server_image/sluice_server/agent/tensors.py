"""Names, types and shapes of the tensors in safetensors files, read without loading any."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 * 2**20


class NotSafetensors(ValueError):
    """The file is no safetensors file, or is cut short."""


_INFINITE = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
"""Exponent bits of each type: all are set in NaN and infinity, and in no other number."""

_BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
"""Width of a number of each type that an adapter may have."""

_CHUNK_NUMBERS = 2**22


class _Entry(BaseModel):
    """One tensor in a file's header; offsets are counted from the header's end."""

    dtype: str
    shape: list[NonNegativeInt] = Field(max_length=8)
    data_offsets: list[NonNegativeInt] = Field(min_length=2, max_length=2)


_HEADER: TypeAdapter[dict[str, _Entry]] = TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its type, its shape, and the offsets of its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def tensors(path: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file: 8 bytes of length, then JSON. Return the tensors by name.

    Raises:
        NotSafetensors: the file is something else, or is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        length = struct.unpack("<Q", start)[0] if len(start) == _LENGTH_BYTES else size
        if length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            raise NotSafetensors(f"{path.name} is no safetensors file, or is cut short")
        text = file.read(length)
    data = _LENGTH_BYTES + length
    try:
        header = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        entries = _HEADER.validate_python(header, strict=True)
    except (ValueError, AttributeError, RecursionError) as error:
        raise NotSafetensors(f"{path.name} has no safetensors header") from error
    found = {
        name: Tensor(entry.dtype, tuple(entry.shape), *(data + offset for offset in entry.data_offsets))
        for name, entry in entries.items()
    }
    for name, tensor in found.items():
        if not data <= tensor.start <= tensor.end <= size:
            raise NotSafetensors(f"{path.name} is cut short")
        numbers, bits = math.prod(tensor.shape), _BITS.get(tensor.dtype)
        if bits is not None and 8 * (tensor.end - tensor.start) != bits * numbers:
            raise NotSafetensors(
                f"{path.name}: {name} of shape {tensor.shape} has no {numbers} numbers of {tensor.dtype}"
            )
    return found


def not_finite(path: Path, found: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a NaN or an infinity; None if there is none."""
    import numpy as np

    for name, tensor in found.items():
        bits = _INFINITE.get(tensor.dtype)
        size = tensor.end - tensor.start
        if bits is None or size == 0:
            continue
        width = _BITS[tensor.dtype] // 8
        numbers = np.memmap(path, f"<u{width}", "r", tensor.start, (size // width,))
        for start in range(0, len(numbers), _CHUNK_NUMBERS):
            if np.any((numbers[start : start + _CHUNK_NUMBERS] & bits) == bits):
                return name
    return None


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of all safetensors files in a model's folder, by name."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in tensors(path).items()}
