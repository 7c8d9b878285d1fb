"""The shape of a model as far as memory and time follow from it. It is read from the model on the meta device."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LinearShape:
    """A linear layer, and the adapter beside it."""

    inputs: int
    outputs: int
    rank: int = 0
    """Of the adapter; 0 without one."""

    @property
    def weights(self) -> int:
        """Without the adapter's."""
        return self.inputs * self.outputs

    @property
    def adapter_weights(self) -> int:
        """Of the adapter's two matrices."""
        return self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class BlockShape:
    """Attention, an MLP, or another module of a decoder layer whose linear layers work together."""

    linears: tuple[LinearShape, ...]
    """In their order. The last one reads what the block has computed; all others read the block's input."""
    is_attention: bool = False

    @property
    def is_gated(self) -> bool:
        """Whether an MLP multiplies two halves: its first layers write at least twice what its last one reads."""
        *first, last = self.linears
        return not self.is_attention and sum(each.outputs for each in first) >= 2 * last.inputs

    def with_rank(self, rank: int) -> tuple[LinearShape, ...]:
        """Its linear layers with adapters of a rank."""
        return tuple(replace(linear, rank=rank) for linear in self.linears)


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer."""

    blocks: tuple[BlockShape, ...]
    norm_features: int = 0
    """Features of a token that its norms read, counted once for each norm, such as twice the hidden size."""
    norms_are_float32: bool = True
    """Whether the norms compute in float32 whatever the model does, as every RMSNorm of transformers does."""
    expert_weights: int = 0
    """Of experts that are one tensor, of all experts together. 4 bits and adapters pass over them."""
    expert_features: int = 0
    """Features of a token that those experts make, over all experts that a token goes to: gate, up, the gate's
    function, and what is added up with the router's weights."""
    expert_inputs: int = 0
    """Features that go into their two products, as they come and rounded, which only trained experts keep."""
    other_weights: int = 0
    """All other weights: norms, biases, routers' tables, convolutions."""
    window: int | None = None
    """How many tokens back its attention sees; None: all of them."""

    @property
    def linears(self) -> tuple[LinearShape, ...]:
        """Its linear layers."""
        return tuple(linear for block in self.blocks for linear in block.linears)

    @property
    def linear_weights(self) -> int:
        """Weights of its linear layers."""
        return sum(linear.weights for linear in self.linears)

    @property
    def adapter_weights(self) -> int:
        """Weights of its adapters."""
        return sum(linear.adapter_weights for linear in self.linears)

    @property
    def weights(self) -> int:
        """All but the adapters'."""
        return self.linear_weights + self.expert_weights + self.other_weights


@dataclass(frozen=True)
class ModelShape:
    """A causal language model: an embedding, decoder layers, a head."""

    layers: tuple[LayerShape, ...]
    hidden: int
    vocabulary: int
    head_weights: int
    """Of an output head of its own; 0 when it is the embedding."""
    outer_weights: int
    """All other weights that are in no decoder layer: embeddings, the last norm, a vision tower."""
    heads: int
    query_features: int
    """Features of all queries of a token, which is heads times their size."""
    key_features: int
    """The same of the keys, and of the values; less where heads share them."""
    experts_share: float = 1.0
    """Part of the experts that a token goes to."""
    function_keeps: int = 1
    """How many numbers an MLP's function keeps for its gradient, of each number that goes into it."""
    caps_logits: bool = False
    """Whether the logits are capped, which takes as much again as they do."""
    has_other_mixers: bool = False
    """Whether some layers mix tokens by something else than attention, whose memory only its own code knows."""
    is_eager: bool = False
    """Whether attention keeps each pair of tokens' weight, instead of computing it again."""

    @property
    def weights(self) -> int:
        """All weights but the adapters', each once."""
        return sum(layer.weights for layer in self.layers) + self.head_weights + self.outer_weights

    @property
    def adapter_weights(self) -> int:
        """Weights of the adapters."""
        return sum(layer.adapter_weights for layer in self.layers)

    @property
    def has_adapter(self) -> bool:
        """Whether there are adapters, so that all else is frozen."""
        return self.adapter_weights > 0

    @property
    def head_size(self) -> int:
        """Weights of the output head, its own or the embedding's."""
        return self.hidden * self.vocabulary

    def adapted(self, rank: int) -> "ModelShape":
        """The same model with an adapter beside every linear layer, as a job has that names none."""
        blocks = ([replace(each, linears=each.with_rank(rank)) for each in layer.blocks] for layer in self.layers)
        layers = (replace(layer, blocks=tuple(each)) for layer, each in zip(self.layers, blocks, strict=True))
        return replace(self, layers=tuple(layers))

    @property
    def layers_with_gradients(self) -> tuple[LayerShape, ...]:
        """Layers that gradients go through. Below the first adapter nothing is kept for them."""
        if not self.has_adapter:
            return self.layers
        first = next(index for index, layer in enumerate(self.layers) if layer.adapter_weights)
        return self.layers[first:]


def shape_of(model: "PreTrainedModel | PeftModel") -> ModelShape:
    """Read the shape of a model that has its weights on any device, meta too, with or without adapters.

    Weights that two modules share count once. Four-bit weights must not be packed yet, so read it before they are.
    """
    from sluice_trainer.train.weights.model import bare, decoder_layers

    root = bare(model)
    config = root.config.get_text_config()
    layers = decoder_layers(model)
    head = root.get_output_embeddings()
    inside = {id(weight) for weight in layers.parameters()}
    outside = {id(weight): weight for weight in root.parameters() if id(weight) not in inside}
    embedding = root.get_input_embeddings().weight
    own_head = 0 if head is None or head.weight is embedding or id(head.weight) in inside else head.weight.numel()
    types = getattr(config, "layer_types", None) or []
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    experts = _first_of(config, ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"))
    chosen = _first_of(config, ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts")) or 1
    of_heads = {
        name: features * size
        for begins, features in (("q", heads), ("k", key_heads))
        for name in (f"{begins}_norm", f"{begins}_layernorm")
    }
    return ModelShape(
        layers=tuple(
            replace(_layer(layer, config.hidden_size, chosen, of_heads), window=_window(config, types, index))
            for index, layer in enumerate(layers)
        ),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        head_weights=own_head,
        outer_weights=sum(weight.numel() for weight in outside.values()) - own_head,
        heads=heads,
        query_features=heads * size,
        key_features=key_heads * size,
        experts_share=min(1.0, chosen / experts) if experts else 1.0,
        function_keeps=_KEPT_BY_FUNCTION.get(_function(config), 1),
        caps_logits=bool(getattr(config, "final_logit_softcapping", None)),
        has_other_mixers=any("attention" not in kind or "linear" in kind for kind in types if kind != "conv"),
        is_eager=root.config._attn_implementation == "eager",
    )


_KEPT_BY_FUNCTION = {"relu": 0, "quick_gelu": 2, "gelu_new": 4, "gelu_fast": 4}
"""Those that keep other than their input. relu keeps its output, which the next layer keeps anyhow; the others are
written in Python, step by step."""


def _function(config: object) -> str:
    names = ("hidden_act", "hidden_activation", "activation_function")
    return next((found for name in names if isinstance(found := getattr(config, name, None), str)), "")


def _window(config: object, types: Sequence[str], index: int) -> int | None:
    """How many tokens back a layer's attention sees, as its configuration says."""
    window = getattr(config, "sliding_window", None)
    if types and types[index] != "sliding_attention":
        return None
    return window if isinstance(window, int) else None


def _first_of(config: object, names: Iterable[str]) -> int:
    return next((found for name in names if isinstance(found := getattr(config, name, None), int)), 0)


def _layer(layer: "nn.Module", hidden: int, experts_of_token: int, of_heads: Mapping[str, int]) -> LayerShape:
    """Read a decoder layer.

    Args:
        layer: The layer.
        hidden: Features of a token between layers.
        experts_of_token: How many experts a token goes to.
        of_heads: Features that a norm reads which is as wide as one head, by its last name.
    """
    from torch import nn

    blocks, seen, norms, norms_are_float32 = [], set[int](), 0, True
    for parent in layer.modules():
        linears = [each for each in parent.children() if _is_linear(each)]
        if not linears or _is_adapter(parent):
            continue
        blocks.append(BlockShape(tuple(map(_linear, linears)), "attention" in type(parent).__name__.lower()))
        seen |= {id(_base(linear).weight) for linear in linears}
    for name, module in layer.named_modules():
        if "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), nn.Parameter):
            norms += of_heads.get(name.rpartition(".")[2], module.weight.numel())
            norms_are_float32 &= not isinstance(module, nn.LayerNorm)
    rest = {id(each): each for name, each in layer.named_parameters() if id(each) not in seen and ".lora_" not in name}
    experts = [weight for weight in rest.values() if weight.dim() == 3]
    made = [weight.shape[2] if weight.shape[1] == hidden else weight.shape[1] for weight in experts]
    return LayerShape(
        blocks=tuple(blocks),
        norm_features=norms,
        norms_are_float32=norms_are_float32,
        expert_weights=sum(weight.numel() for weight in experts),
        expert_features=experts_of_token * (sum(made) + hidden) if made else 0,
        expert_inputs=experts_of_token * (min(made) + 3 * hidden) if made else 0,
        other_weights=sum(weight.numel() for weight in rest.values() if weight.dim() != 3),
    )


def _is_linear(module: "nn.Module") -> bool:
    from torch import nn

    return isinstance(module, nn.Linear) or hasattr(module, "lora_A")


def _is_adapter(module: "nn.Module") -> bool:
    """Whether the module is PEFT's layer around a linear one, or its dictionary of adapters."""
    from torch import nn

    return hasattr(module, "lora_A") or isinstance(module, nn.ModuleDict)


def _base(linear: "nn.Module") -> "nn.Linear":
    return cast("nn.Linear", getattr(linear, "base_layer", linear))


def _linear(linear: "nn.Module") -> LinearShape:
    base = _base(linear)
    ranks = getattr(linear, "r", {})
    return LinearShape(base.in_features, base.out_features, max(ranks.values(), default=0) if ranks else 0)
