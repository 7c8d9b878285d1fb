"""The memory of one GPU that a training needs, by a formula over the model's shape.

What is counted is what torch allocates. docs/benchmarks/estimate.md compares the formula with measured trainings. Its
three parts live at different times:

- *Always*: weights, the optimizer's moments and, from the first backward pass of a step on, gradients.
- *Kept*: what the forward pass keeps of each layer for the backward pass. It is highest when the forward pass ends.
- *At the moment*: what the loss, or the layer whose gradients are computed now, needs beside that.
"""

from dataclasses import dataclass

from sluice_api.training import Method
from sluice_trainer.data.estimate.shape import BlockShape, LayerShape, ModelShape

FLOAT32, BFLOAT16 = 4, 2
MOMENTS = 2 * FLOAT32
"""Bytes of AdamW's two moments of a trained weight."""
FOUR_BITS = 0.5 + 1 / 64 + FLOAT32 / (64 * 256)
"""Bytes of a weight as NF4: its bits, the scale of each 64 weights in 8 bits, and the scale of each 256 such scales."""
TILE_BYTES = 160 << 20
"""The fused loss's tile of logits at most, with what is computed from it (train/fused_cross_entropy.py)."""


@dataclass(frozen=True)
class Setting:
    """How the model is trained, as far as memory follows from it."""

    method: Method
    dtype_bytes: int
    """Of a number as the model computes: 2 in bfloat16, 4 in float32."""
    has_dropout: bool = False
    """Whether the adapter has dropout."""
    checkpointing: bool = False
    """Whether activations are computed a second time."""
    processes: int = 1
    """GPUs that train together."""
    sharded: bool = False
    """Whether each of them keeps only its part of the weights."""
    accumulates: bool = True
    """Whether a step has several micro-batches on a GPU, so that gradients are there while the next one runs."""
    on_gpu: bool = True
    """Dropout's mask has one byte for each number on a GPU; on a CPU it is as large as what it masks."""

    @property
    def is_full(self) -> bool:
        """Whether all weights are trained."""
        return self.method is Method.FULL

    @property
    def rounds_weights(self) -> bool:
        """Whether products take rounded copies of float32 weights: Full in bfloat16."""
        return self.is_full and self.dtype_bytes < FLOAT32

    @property
    def stream_bytes(self) -> int:
        """Of a number between the layers: with Full the embedding is float32, and so is what is added to it."""
        return FLOAT32 if self.is_full else self.dtype_bytes


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    tokens: int
    """With padding."""
    longest: int
    """Tokens of its longest sequence."""
    packed: bool = False
    """Whether rows lie end to end, so that attention needs a mask."""
    loss_tokens: int | None = None
    """Of these, those that the loss counts; None: all of them."""

    @property
    def pairs(self) -> int:
        """Pairs of tokens that a mask, or attention that keeps its weights, has a number for."""
        return self.tokens * (self.tokens if self.packed else self.longest)


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU, by what they are for; `total` is the peak."""

    weights: int
    moments: int
    gradients: int
    activations: int
    """Kept by the forward pass."""
    moment: int
    """Of the loss or of a layer's backward pass, whichever is more."""

    @property
    def total(self) -> int:
        """The peak: gradients of a step's first micro-batch come as activations go, so that the larger one counts."""
        return self.weights + self.moments + self.gradients + self.activations + self.moment


def memory_of(shape: ModelShape, setting: Setting, batch: Batch) -> Memory:
    """Estimate the peak memory of one GPU, in bytes."""
    trained = shape.weights if setting.is_full else shape.adapter_weights
    shards = setting.processes if setting.sharded else 1
    own = trained / shards if setting.is_full else trained  # an adapter is never sharded
    gradients = own * FLOAT32
    if setting.processes > 1 and not setting.sharded:
        gradients += own * FLOAT32  # all of them in one tensor, to be summed over the processes
    kept = kept_bytes(shape, setting, batch)
    moment = max(_loss_bytes(shape, setting, batch), _layer_moment(shape, setting, batch))
    weights = weight_bytes(shape, setting) / shards + shape.adapter_weights * FLOAT32
    if setting.sharded:
        weights += _gathered(shape, setting)
    if setting.rounds_weights and not setting.sharded:
        # The rounded copies are kept with the activations, or for as long as the forward pass takes.
        kept += sum(layer.linear_weights + layer.expert_weights for layer in shape.layers) * BFLOAT16
    at_once = gradients + kept + moment if setting.accumulates else max(gradients, kept + moment)
    shown = gradients if setting.accumulates else max(0.0, at_once - kept - moment)
    return Memory(int(weights), int(own * MOMENTS), int(shown), int(kept), int(moment))


def weight_bytes(shape: ModelShape, setting: Setting) -> float:
    """Bytes of the whole model, without adapters."""
    if setting.is_full:
        return shape.weights * FLOAT32
    if setting.method is Method.QLORA:
        packed = sum(layer.linear_weights for layer in shape.layers)
        return packed * FOUR_BITS + (shape.weights - packed) * setting.dtype_bytes
    return shape.weights * setting.dtype_bytes


def kept_bytes(shape: ModelShape, setting: Setting, batch: Batch) -> float:
    """Bytes that the forward pass keeps: all of each layer, or with checkpointing only what goes into each."""
    layers = shape.layers_with_gradients
    mask = batch.pairs if batch.packed else 0  # one byte for each pair, once for all layers
    last = batch.tokens * shape.hidden * (FLOAT32 + setting.stream_bytes)  # the last norm, and what goes into the head
    if setting.checkpointing:
        return mask + last + len(layers) * batch.tokens * shape.hidden * setting.stream_bytes
    return mask + last + sum(layer_bytes(layer, shape, setting, batch) for layer in layers)


def layer_bytes(layer: LayerShape, shape: ModelShape, setting: Setting, batch: Batch) -> float:
    """Bytes that the forward pass keeps of one decoder layer, without checkpointing."""
    norm = FLOAT32 if layer.norms_are_float32 else setting.dtype_bytes
    if setting.is_full and layer.norms_are_float32:
        norm += FLOAT32  # what is multiplied with the norm's own weight, for that weight's gradient
    experts = layer.expert_features + (layer.expert_inputs if setting.is_full else 0)
    per_token: float = layer.norm_features * norm + experts * setting.dtype_bytes
    masked = batch.packed or (layer.window is not None and batch.longest >= layer.window)
    per_token += sum(_block_bytes(block, shape, setting, masked=masked) for block in layer.blocks)
    pairs: float = 0
    if any(block.is_attention for block in layer.blocks):
        if shape.is_eager:  # the softmax in float32, and a rounded copy of it
            pairs = shape.heads * (FLOAT32 + (setting.dtype_bytes if setting.dtype_bytes < FLOAT32 else 0))
        elif masked:  # each layer makes numbers of the mask
            pairs = setting.dtype_bytes
    return per_token * batch.tokens + pairs * batch.pairs


def _block_bytes(block: BlockShape, shape: ModelShape, setting: Setting, *, masked: bool) -> float:
    """Bytes for each token that the forward pass keeps of one block."""
    *first, last = block.linears
    kept = float(sum(FLOAT32 * linear.rank for linear in block.linears))
    size = setting.dtype_bytes
    inputs = [linear.inputs for linear in first if setting.is_full or linear.rank]
    if _casts(setting):  # each layer makes a copy of its own of what they share
        kept += _input_bytes(setting) * sum(inputs)
    else:
        kept += size * max(inputs, default=0)
    if block.is_attention:
        keys = shape.query_features if masked and not shape.is_eager else shape.key_features
        kept += size * (2 * shape.query_features + 2 * keys) + FLOAT32 * shape.heads
        if len(first) == 1:  # the values are a view of one tensor with queries and keys, which is kept with them
            kept += size * (shape.query_features + shape.key_features)
        own = last.inputs if _casts(setting) and not setting.is_full else 0  # else it is what attention has kept
    else:
        made = sum(linear.outputs for linear in first)
        gate = last.inputs if block.is_gated else 0  # half of what is made; its function's result is kept too
        own_copy = _casts(setting) and not setting.is_full
        keeps = max(shape.function_keeps, 1) if own_copy else shape.function_keeps
        kept += size * (made + gate + (keeps - 1) * (gate or made))
        own = last.inputs
    if setting.is_full or last.rank:
        kept += (_input_bytes(setting) if _casts(setting) and not setting.is_full else size) * own
    return kept


def _casts(setting: Setting) -> bool:
    """Whether a layer that learns makes a copy of its input: to float32 for the adapter, or to bfloat16 with Full.

    With dropout, the copy is what dropout leaves of it.
    """
    return setting.dtype_bytes < FLOAT32 or (setting.has_dropout and not setting.is_full)


def _input_bytes(setting: Setting) -> int:
    """Bytes of a number of such a copy, with dropout's mask."""
    if setting.is_full:
        return BFLOAT16
    mask = 1 if setting.on_gpu else FLOAT32
    return FLOAT32 + (mask if setting.has_dropout else 0)


def _layer_moment(shape: ModelShape, setting: Setting, batch: Batch) -> float:
    """Bytes at the moment when a layer's gradients are computed, of the layer that needs most."""
    return max(
        (
            _backward_bytes(layer, shape, setting, batch)
            + (layer_bytes(layer, shape, setting, batch) if setting.checkpointing else 0)
            for layer in shape.layers_with_gradients
        ),
        default=0.0,
    )


def _backward_bytes(layer: LayerShape, shape: ModelShape, setting: Setting, batch: Batch) -> float:
    """Bytes of the gradients that flow through a layer: of what its widest block has made, and of the stream."""
    widest = max((sum(linear.outputs for linear in block.linears[:-1]) for block in layer.blocks), default=0)
    flowing = batch.tokens * (widest * setting.dtype_bytes + 2 * shape.hidden * setting.stream_bytes)
    largest = max((linear.weights for linear in layer.linears), default=0)
    if setting.is_full:
        flowing += largest * (FLOAT32 + (BFLOAT16 if setting.rounds_weights else 0))
    if setting.method is Method.QLORA:
        flowing += largest * setting.dtype_bytes  # unpacked, for one product
    return flowing


def _loss_bytes(shape: ModelShape, setting: Setting, batch: Batch) -> float:
    """Bytes of the fused loss: a tile of logits, and gradients of the hidden states and of a head that is trained."""
    positions = batch.tokens if batch.loss_tokens is None else batch.loss_tokens
    logit = FLOAT32 * (2 if shape.caps_logits else 1) + (setting.dtype_bytes if setting.dtype_bytes < FLOAT32 else 0)
    tile = min(TILE_BYTES, positions * shape.vocabulary * logit)
    hidden = positions * shape.hidden * (FLOAT32 + setting.dtype_bytes)
    if not setting.is_full:
        return tile + hidden
    head = shape.head_size * (FLOAT32 + (BFLOAT16 if setting.rounds_weights else 0))
    return tile + hidden + head


def _gathered(shape: ModelShape, setting: Setting) -> float:
    """Bytes that FSDP2 gathers: the weights that are in no layer, the layer that computes, and the next one."""
    size = setting.dtype_bytes
    largest = max((layer.weights for layer in shape.layers), default=0)
    return size * (shape.outer_weights + shape.head_weights + 2 * largest)
