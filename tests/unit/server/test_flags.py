"""The command line and environment of vLLM, from a slot's spec."""

from pathlib import Path
from typing import Any

import pytest

from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.slots import SlotSpec
from sluice_server.flags import vllm_command
from sluice_server.paths import SlotPaths

IN_A_POD = SlotPaths(Path("/"), 8000, 8001)
MODEL = Path("/models/a")

COMMON = (
    "--served-model-name chat --host 0.0.0.0 --port 8000 --api-server-count 1"
    " --middleware sluice_server.middleware.Middleware --shutdown-timeout 10"
    " --disable-access-log-for-endpoints /health,/metrics,/ping,/v1/models,/sluice/state --disable-fastapi-docs"
)

NO_MEDIA = "--allowed-media-domains serving.allowedMediaDomains-is-empty.invalid"
GENERATE = f"--runner generate --load-format safetensors {NO_MEDIA}"
POOLING = f"--runner pooling --load-format safetensors {NO_MEDIA}"
LORA = (
    "--enable-lora --trust-request-chat-template --worker-extension-cls sluice_server.worker_extension.WorkerExtension"
)

COMMON_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HOME": "/scratch/huggingface",
    "HF_HUB_OFFLINE": "1",
    "HOME": "/scratch",
    "TMPDIR": "/scratch",
    "TORCHINDUCTOR_CACHE_DIR": "/scratch/cache/inductor",
    "TRITON_CACHE_DIR": "/scratch/cache/triton",
    "USER": "sluice",
    "VLLM_CACHE_ROOT": "/scratch/cache/vllm",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "0",
    "XDG_CACHE_HOME": "/scratch/cache",
}
CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
LORA_ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def slot(device: Any, **spec: Any) -> SlotSpec:
    return SlotSpec(
        namespace="demo", engine="chat", index=0, device=device, spec=InferenceEngineSpec.model_validate(spec)
    )


@pytest.mark.parametrize(
    ("what", "given", "arguments", "environment"),
    [
        (
            "a model in a claim, on a GPU",
            slot("cuda", model={"uri": "pvc://models/smollm2"}),
            f"serve /models/a {COMMON} {GENERATE} --dtype auto --tensor-parallel-size 1 --gpu-memory-utilization 0.90",
            {},
        ),
        (
            "with adapters and every setting, on four GPUs",
            slot(
                "cuda",
                model={"uri": "hf://org/name@v1.0"},
                resources={"gpus": 4},
                lora={"maxAdapters": 4, "maxRank": 32},
                serving={
                    "maxModelLength": 4096,
                    "maxConcurrentRequests": 64,
                    "dtype": "bfloat16",
                    "gpuMemoryUtilization": "0.5",
                    "enforceEager": True,
                },
            ),
            f"serve /models/a {COMMON} {GENERATE} --dtype bfloat16 --max-model-len 4096"
            f" --max-num-seqs 64 {LORA} --max-loras 5 --max-cpu-loras 5 --max-lora-rank 32"
            " --tensor-parallel-size 4 --gpu-memory-utilization 0.5 --enforce-eager",
            LORA_ENVIRONMENT,
        ),
        (
            "embeddings on four cores that play two GPUs",
            slot("cpu", model={"uri": "hf://org/name"}, task="Embed", resources={"gpus": 2, "cpu": "4"}),
            f"serve /models/a {COMMON} {POOLING} --dtype auto --enforce-eager --distributed-executor-backend uni",
            {**CPU_ENVIRONMENT, "OMP_NUM_THREADS": "4"},
        ),
        (
            "one that sleeps while it is lent",
            slot("cuda", model={"uri": "hf://org/name"}, preemption={"policy": "Sleep", "sleepLevel": 2}),
            f"serve /models/a {COMMON} {GENERATE} --dtype auto --tensor-parallel-size 1"
            " --gpu-memory-utilization 0.90 --enable-sleep-mode",
            {"VLLM_SERVER_DEV_MODE": "1"},
        ),
        (
            "the same on a CPU, where vLLM has no sleep mode and would refuse to start with it",
            slot("cpu", model={"uri": "hf://org/name"}, preemption={"policy": "Sleep", "sleepLevel": 2}),
            f"serve /models/a {COMMON} {GENERATE} --dtype auto --enforce-eager --distributed-executor-backend uni",
            CPU_ENVIRONMENT,
        ),
        (
            "an engine that may fetch images from two hosts",
            slot(
                "cuda",
                model={"uri": "hf://org/name"},
                serving={"allowedMediaDomains": ["images.example.org", "example.com"]},
            ),
            f"serve /models/a {COMMON} --runner generate --load-format safetensors"
            " --allowed-media-domains images.example.org example.com --dtype auto"
            " --tensor-parallel-size 1 --gpu-memory-utilization 0.90",
            {},
        ),
        (
            "the demo",
            slot(
                "cpu",
                model={"uri": "pvc://models"},
                lora={"maxAdapters": 1, "maxRank": 16, "volumeClaims": ["adapters"]},
            ),
            f"serve /models/a {COMMON} {GENERATE} --dtype auto {LORA} --max-loras 2"
            " --max-cpu-loras 2 --max-lora-rank 16 --enforce-eager --distributed-executor-backend uni",
            CPU_ENVIRONMENT | LORA_ENVIRONMENT,
        ),
    ],
)
def test_vllm_command(what: str, given: SlotSpec, arguments: str, environment: dict[str, str]) -> None:
    command = vllm_command(given, IN_A_POD, MODEL)
    assert " ".join(command.arguments) == arguments
    assert command.environment == COMMON_ENVIRONMENT | environment


@pytest.mark.parametrize(("rank", "vllms"), [(1, 1), (2, 8), (8, 8), (17, 32), (257, 320), (321, 512), (512, 512)])
def test_max_lora_rank_is_the_next_that_vllm_accepts(rank: int, vllms: int) -> None:
    given = slot("cuda", model={"uri": "hf://org/name"}, lora={"maxRank": rank})
    arguments = vllm_command(given, IN_A_POD, MODEL).arguments
    assert arguments[arguments.index("--max-lora-rank") + 1] == str(vllms)


def test_model_of_pickles_and_a_given_template_have_flags_of_their_own() -> None:
    given = slot("cuda", model={"uri": "pvc://models"})
    arguments = vllm_command(given, IN_A_POD, MODEL, has_pickles=True, chat_template=Path("/scratch/t")).arguments
    assert arguments[arguments.index("--load-format") + 1] == "hf"
    assert arguments[arguments.index("--chat-template") + 1] == "/scratch/t"
    assert "--trust-remote-code" not in arguments
