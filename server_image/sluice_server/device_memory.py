"""How much memory of this pod's GPUs is in use, from NVML. That vLLM sleeps does not prove it (vllm#47654)."""

from sluice_server.control import DeviceMemory


def device_memory() -> tuple[DeviceMemory, ...] | None:
    """The memory of each GPU of this container; None if there is no GPU, or NVML does not answer.

    NVML counts all processes on these GPUs, those of other containers too.
    """
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            found = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    return tuple(DeviceMemory(used=memory.used, total=memory.total) for memory in found) or None
