"""From a slot's spec to the command line and environment of vLLM's own server."""

from dataclasses import dataclass
from pathlib import Path

from sluice_api import pods
from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.slots import SlotSpec
from sluice_server.paths import SHUTDOWN_SECONDS, STATE_PATH, SlotPaths

MIDDLEWARE = "sluice_server.middleware.Middleware"
WORKER_EXTENSION = "sluice_server.worker_extension.WorkerExtension"

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that --max-lora-rank accepts (vllm/config/lora.py); adapters of any rank below are served."""
_NO_DOMAIN = "serving.allowedMediaDomains-is-empty.invalid"
"""A domain that can't exist (RFC 2606), as vLLM takes an empty list for all domains. Users read it in vLLM's error."""
_QUIET_ROUTES = f"/health,/metrics,/ping,/v1/models,{STATE_PATH}"


@dataclass(frozen=True)
class Command:
    """vLLM's arguments (after `vllm`) and the environment that it needs beside the container's own."""

    arguments: tuple[str, ...]
    environment: dict[str, str]


def vllm_command(
    slot: SlotSpec, paths: SlotPaths, model: Path, *, has_pickles: bool = False, chat_template: Path | None = None
) -> Command:
    """The command of the container `vllm`.

    Args:
        slot: what it is to serve.
        paths: where this container's folders are.
        model: the model's folder.
        has_pickles: the weights are pickles, which vLLM then reads as tables of tensors (weights_only).
        chat_template: the file with model.chatTemplate; None if the model's own template is used.
    """
    spec = slot.spec
    arguments = [
        *("serve", str(model)),
        *("--served-model-name", slot.engine),
        *("--host", "0.0.0.0", "--port", str(paths.serve_port)),
        # Runtime adapters need one API server process, and so does one count of requests in flight.
        *("--api-server-count", "1"),
        *("--middleware", MIDDLEWARE),
        *("--shutdown-timeout", str(SHUTDOWN_SECONDS)),
        *("--disable-access-log-for-endpoints", _QUIET_ROUTES),
        "--disable-fastapi-docs",
        *("--runner", "pooling" if spec.task == "Embed" else "generate"),
        *("--load-format", "hf" if has_pickles else "safetensors"),  # By default vLLM falls back to pickles.
        *(["--chat-template", str(chat_template)] if chat_template else []),
        *("--allowed-media-domains", *(spec.serving.allowed_media_domains or (_NO_DOMAIN,))),
        *_serving(spec),
        *_lora(spec),
        *_device(slot),
    ]
    return Command(tuple(arguments), _environment(slot, paths))


def _serving(spec: InferenceEngineSpec) -> list[str]:
    serving = spec.serving
    arguments = ["--dtype", serving.dtype]
    if serving.max_model_length is not None:
        arguments += ["--max-model-len", str(serving.max_model_length)]
    if serving.max_concurrent_requests is not None:
        arguments += ["--max-num-seqs", str(serving.max_concurrent_requests)]
    return arguments


def _lora(spec: InferenceEngineSpec) -> list[str]:
    if spec.lora is None:
        return []
    # One more than adapters: a new version is loaded beside the old one.
    slots = str(spec.lora.max_adapters + 1)
    return [
        "--enable-lora",
        "--trust-request-chat-template",  # The middleware writes an adapter's own, and lets no client's through.
        *("--worker-extension-cls", WORKER_EXTENSION),
        *("--max-loras", slots, "--max-cpu-loras", slots),
        *("--max-lora-rank", str(next(rank for rank in _RANKS if rank >= spec.lora.max_rank))),
    ]


def _device(slot: SlotSpec) -> list[str]:
    if slot.device == "cpu":
        return ["--enforce-eager", "--distributed-executor-backend", "uni"]
    serving = slot.spec.serving
    return [
        *("--tensor-parallel-size", str(slot.spec.resources.gpus)),
        *("--gpu-memory-utilization", serving.gpu_memory_utilization),
        *(["--enforce-eager"] if serving.enforce_eager else []),
        *(["--enable-sleep-mode"] if slot.sleep_level else []),
    ]


def _environment(slot: SlotSpec, paths: SlotPaths) -> dict[str, str]:
    scratch = str(paths.scratch)
    environment = {
        # The root filesystem is read-only and uid 65532 has no name: every cache goes to the scratch disk.
        "HOME": scratch,
        "TMPDIR": scratch,
        "USER": "sluice",
        "HF_HOME": f"{scratch}/huggingface",
        "HF_HUB_OFFLINE": "1",  # The model is on this disk: nothing is asked of the hub.
        "XDG_CACHE_HOME": f"{scratch}/cache",
        "VLLM_CACHE_ROOT": f"{scratch}/cache/vllm",
        "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/cache/inductor",
        "TRITON_CACHE_DIR": f"{scratch}/cache/triton",
        "VLLM_NO_USAGE_STATS": "1",
        # An allowed domain could lead vLLM to any other, and into the cluster.
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "DO_NOT_TRACK": "1",
        # Opens /sleep, /wake_up and /collective_rpc, which the middleware keeps for the agent, as all but serving.
        "VLLM_SERVER_DEV_MODE": "1" if slot.sleep_level else "0",
    }
    if slot.spec.lora is not None:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if slot.device == "cpu":
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # Spinning threads collapse when anything else uses a core.
            "OMP_WAIT_POLICY": "PASSIVE",
            # By default every vLLM binds its threads to the first cores, so that all replicas of a node share them.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            pods.THREADS_ENV: str(pods.threads(slot.spec.resources.cpu)),
            # Saves a process and 7 s of its start on two cores. vLLM gives a CPU engine a worker process to bind its
            # threads, which nobind does not do. The API server's engine stays a process.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # vLLM compiles parts of its sampler at the first request that needs them, --enforce-eager or not:
            # all requests wait half a minute, and it needs a C++ compiler, which the image does not have.
            "TORCHDYNAMO_DISABLE": "1",
        }
    return environment
