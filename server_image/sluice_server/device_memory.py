"""How much of its GPUs' memory is in use, as NVML says: that vLLM has gone to sleep proves nothing (vllm#47654)."""

from sluice_server.control import DeviceMemory


def device_memory() -> tuple[DeviceMemory, ...] | None:
    """The memory of each GPU that this container sees; None where there is none, or NVML does not answer.

    A container sees the GPUs that it was given, and NVML counts what all processes on them use.
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
