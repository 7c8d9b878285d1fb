"""How long a training takes: the operations that it needs, over those that its GPUs do in a second.

The operations are counted (tests compare them with torch's own counter). What a GPU does of its best is a range: it
depends on kernels, lengths and the host.
"""

import re
from dataclasses import dataclass

from sluice_trainer.data.estimate.memory import Setting
from sluice_trainer.data.estimate.shape import ModelShape

UTILISATION = (0.2, 0.45)
"""Part of a GPU's best that training reaches: the least and the most that is usual.

NVIDIA publishes 0.41 for LoRA of Llama 3 8B on an H100 with its own kernels. This trainer uses those of torch and
transformers."""
LAUNCH_SECONDS = 0.002
"""A decoder layer's forward and backward pass take at least this long, however little there is to compute: some
hundreds of kernels are launched. It is what small models are slow by."""
TERA = 10**12


@dataclass(frozen=True)
class Device:
    """What a GPU does at best, in operations a second, without sparsity: 10**12 times these."""

    bfloat16: float
    """0: it has no instructions for bfloat16, and the trainer computes in float32."""
    float32: float


_DEVICES = {
    "B200": Device(2250, 75),
    "GH200": Device(989, 67),
    "H200": Device(989, 67),
    "H100 NVL": Device(835, 60),
    "H100 PCIE": Device(756, 51),
    "H100": Device(989, 67),
    "A100": Device(312, 19.5),
    "A40": Device(149.7, 37.4),
    "A30": Device(165, 10.3),
    "A10G": Device(70, 31.5),
    "A10": Device(125, 31.2),
    "L40S": Device(362, 91.6),
    "L40": Device(181, 90.5),
    "L4": Device(121, 30.3),
    "RTX A6000": Device(154.8, 38.7),
    "RTX 6000 ADA GENERATION": Device(364, 91.1),
    "GEFORCE RTX 4090": Device(165.2, 82.6),
    "GEFORCE RTX 3090": Device(71, 35.6),
    "V100": Device(0, 15.7),
    "T4": Device(0, 8.1),
}
"""Dense throughput, as the vendor's data sheets have it; of consumer cards, with sums in float32."""


@dataclass(frozen=True)
class Work:
    """What training computes: each number is of the whole training, on all GPUs together."""

    tokens: int
    """Read with gradients, over all epochs."""
    loss_tokens: int
    length: float
    """Of a row, in tokens, on average."""
    read_tokens: int = 0
    """Read without gradients: held-out rows, each time that they are measured, and a preference's reference."""
    micro_batches: int = 0


def device_of(product: str) -> Device | None:
    """The GPU of a name, as nvidia.com/gpu.product has it (NVIDIA-H100-80GB-HBM3); None for one that is not known.

    A part of a GPU (MIG, or one that is shared) is not known.
    """
    words = f" {re.sub(r'[^A-Z0-9]+', ' ', product.upper())} "
    if " MIG " in words or " SHARED " in words:
        return None
    return next((device for name, device in _DEVICES.items() if f" {name} " in words), None)


def operations(shape: ModelShape, setting: Setting, work: Work) -> tuple[float, float]:
    """Operations of a training: those of the model, and those of adapters, which are computed in float32.

    A product of a weight with a token takes 2. Forward: one product. Backward: one for the gradient of what went in,
    and one more for the weight's own, if it is trained. So Full takes 6 a weight and token, and LoRA 4.
    """
    layers = sum(layer.linear_weights + layer.expert_weights * shape.experts_share for layer in shape.layers)
    deep = sum(
        layer.linear_weights + layer.expert_weights * shape.experts_share for layer in shape.layers_with_gradients
    )
    forward = 2 * layers
    backward = 2 * deep + (2 * layers if setting.is_full else 0)
    again = 2 * deep if setting.checkpointing else 0
    # Each token attends to half of its row: a product with the keys, and one with the values.
    pairs = len(shape.layers) * 2 * shape.query_features * work.length
    attention = pairs * (3 + (1 if setting.checkpointing else 0))
    head = shape.head_size * (6 if setting.is_full else 4)  # the fused loss computes its gradients at once
    model = work.tokens * (forward + backward + again + attention) + work.loss_tokens * head
    model += work.read_tokens * (forward + pairs) + work.read_tokens * 2 * shape.head_size
    adapter = work.tokens * shape.adapter_weights * (8 if setting.checkpointing else 6)
    return model, adapter + work.read_tokens * 2 * shape.adapter_weights


def seconds_range(
    shape: ModelShape, setting: Setting, work: Work, device: Device, processes: int
) -> tuple[float, float]:
    """The least and the most seconds that training takes, from its first step to its last, on so many GPUs."""
    model, adapter = operations(shape, setting, work)
    narrow = device.bfloat16 if setting.dtype_bytes < 4 and device.bfloat16 else device.float32
    best = (model / narrow + adapter / device.float32) / TERA / processes
    launches = work.micro_batches * len(shape.layers) * LAUNCH_SECONDS / processes
    least, most = UTILISATION
    return max(best / most, launches), max(best / least, 2 * launches)
