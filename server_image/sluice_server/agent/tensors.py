"""Names, types and shapes of the tensors in safetensors files, read without loading any."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 * 2**20
"""What the library safetensors reads at most."""
MAX_ADAPTER_HEADER_BYTES = 16 * 2**20
"""An adapter of a mixture of 256 experts has 15 MiB. The header's values take many times its bytes, and the agent has
512 MiB for all that it does."""
MAX_ADAPTER_TENSORS = 100_000


class NotSafetensors(ValueError):
    """The file is no safetensors file, is cut short, or has a header that is not read."""


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


def adapter_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's weights, which anybody may have written, by name.

    Raises:
        NotSafetensors: the file is something else, is cut short, or has a larger header than an adapter needs.
    """
    text, data = _header(path, MAX_ADAPTER_HEADER_BYTES)
    # Before it is parsed: an empty list takes 3 bytes of the text, and 64 of memory.
    if text.count(b"{") > MAX_ADAPTER_TENSORS or text.count(b"[") > 2 * MAX_ADAPTER_TENSORS:
        raise NotSafetensors(f"{path.name} has more than {MAX_ADAPTER_TENSORS:,} tensors. Train fewer layers")
    return _tensors(path, text, data)


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        NotSafetensors: the file is something else, or is cut short.
    """
    return _tensors(path, *_header(path, _MAX_HEADER_BYTES))


def _header(path: Path, most: int) -> tuple[bytes, int]:
    """The header of a safetensors file, 8 bytes of length and then at most so many of JSON, and where it ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        length = struct.unpack("<Q", start)[0] if len(start) == _LENGTH_BYTES else size
        if length > size - _LENGTH_BYTES:
            raise NotSafetensors(f"{path.name} is no safetensors file, or is cut short")
        if length > most:
            raise NotSafetensors(f"{path.name} has a header of {length:,} bytes, and {most:,} are read")
        return file.read(length), _LENGTH_BYTES + length


def _tensors(path: Path, text: bytes, data: int) -> dict[str, Tensor]:
    size = path.stat().st_size
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
