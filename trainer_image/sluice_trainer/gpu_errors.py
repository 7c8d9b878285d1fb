"""Tells errors of the GPU itself from others: on another GPU they would not occur."""

_GPU_ERROR_PHRASES = (
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "over nvlink or a hardware error",
    "hardware stack error",
    "busy or unavailable",
    "no cuda-capable device",
    "system not yet initialized",
    "fallen off the bus",
    "gpu is lost",
    "cuda error: unknown error",
    "cuda unknown error",
)
"""Texts of cudaGetErrorString and NVML, in lower case. Not among them: errors of a kernel, such as an illegal
address or a failed assertion, which a bug makes just as well."""


def is_gpu_error(text: str) -> bool:
    """Whether an error's text says that the GPU, its memory or its links have failed."""
    return any(phrase in text.lower() for phrase in _GPU_ERROR_PHRASES)
