"""The rules that an adapter must meet before vLLM sees it, in their order, over values.

vLLM loads an adapter of another base model with 200 and ignores it, and answers 500 to a rank that is too large. So the
reasons that a user reads are found here.
"""

from dataclasses import dataclass, field
from typing import Any

from sluice_api.artifacts import AdapterManifest
from sluice_api.reasons import Reason
from sluice_server.agent.rejected import AdapterRejected
from sluice_server.agent.tensors import Tensor

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_MAX_ALPHA = 65_536
_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
"""Types whose tensors have the layer's shape; quantised weights are packed, and have another."""

_PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Values of init_lora_weights that do not change the base model; PiSSA, OLoRA, CorDA and LoftQ change it."""

_UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "lora_bias": "lora_bias",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "layer_replication",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "trainable_token_indices",
}
"""Fields of adapter_config.json that vLLM 0.32 can't serve (vllm/lora/peft_helper.py; vllm#6983, #9280)."""


@dataclass(frozen=True)
class BaseModel:
    """The engine's model. Only of a model in a claim are fingerprint and tensors known, and not of one on the hub."""

    uri: str
    fingerprint: str | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """What the rules need to know of an adapter.

    `not_finite` names a tensor with NaN or infinity, `wanted_digest` is the spec's, and `max_rank` the engine's.
    """

    uri: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    not_finite: str | None
    digest: str
    manifest: AdapterManifest | None
    wanted_digest: str | None
    max_rank: int


def check_adapter(candidate: Candidate, base: BaseModel) -> None:
    """Check an adapter against all rules; the first that it breaks is the reason.

    Raises:
        AdapterRejected: vLLM could not serve the adapter, or would serve it wrongly.
    """
    for rule in RULES:
        rule(candidate, base)


def digest_matches(candidate: Candidate, _base: BaseModel) -> None:
    """The files have the digest of the spec, and that of the manifest, where there is one."""
    if candidate.wanted_digest not in (None, candidate.digest):
        raise AdapterRejected(
            Reason.DIGEST_DIFFERS,
            f"{candidate.uri} has digest {candidate.digest}, source.digest asks for {candidate.wanted_digest}. "
            "Restore the files, or correct the digest.",
        )
    if candidate.manifest and candidate.manifest.digest != candidate.digest:
        raise AdapterRejected(
            Reason.DIGEST_DIFFERS,
            f"{candidate.uri} has digest {candidate.digest}, its manifest.json says {candidate.manifest.digest}. "
            "Restore the files, or export the adapter again.",
        )


def is_plain_lora(candidate: Candidate, _base: BaseModel) -> None:
    """The adapter has only features that vLLM computes as PEFT does."""
    config = candidate.config
    if (kind := config.get("peft_type")) != "LORA":
        raise _invalid(candidate, f"peft_type is {kind!r}. vLLM serves LORA only.")
    if found := [name for key, name in _UNSUPPORTED.items() if config.get(key)]:
        raise _invalid(candidate, f"it uses {', '.join(found)}, which vLLM can't serve. Train without.")
    if (bias := config.get("bias", "none")) != "none":
        raise _invalid(candidate, f"bias is {bias!r}, which vLLM can't serve. Train with bias: none.")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise _invalid(
            candidate, f"init_lora_weights is {start!r}, which changes the base model. Convert it to a plain LoRA."
        )


def rank_fits(candidate: Candidate, _base: BaseModel) -> None:
    """No layer's rank is above the engine's maxRank: vLLM allocates the memory of adapters when it starts."""
    patterns = candidate.config.get("rank_pattern") or {}
    ranks = [candidate.config.get("r"), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise _invalid(candidate, f"r or rank_pattern in adapter_config.json is no positive number: {ranks}.")
    if (rank := max(ranks)) > candidate.max_rank:
        raise AdapterRejected(
            Reason.RANK_TOO_LARGE,
            f"{candidate.uri} has rank {rank}, the engine's lora.maxRank is {candidate.max_rank}. "
            "Train with a lower rank, or raise maxRank.",
        )


def scaling_fits(candidate: Candidate, _base: BaseModel) -> None:
    """lora_alpha and alpha_pattern are numbers that can be meant. vLLM multiplies the weights with them, and infinity,
    which JSON has too, would do what infinite weights do."""
    patterns = candidate.config.get("alpha_pattern") or {}
    alphas = [candidate.config.get("lora_alpha"), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
    if not all(isinstance(alpha, int | float) and 0 < alpha <= _MAX_ALPHA for alpha in alphas):
        raise _invalid(
            candidate,
            f"lora_alpha or alpha_pattern in adapter_config.json is no number from 0 to {_MAX_ALPHA:,}: {alphas}.",
        )


def tensors_are_lora_pairs(candidate: Candidate, _base: BaseModel) -> None:
    """Each layer has a lora_A and a lora_B of one rank, and there is no other tensor."""
    if not candidate.tensors:
        raise _invalid(candidate, "adapter_model.safetensors is empty.")
    for name in candidate.tensors:
        if not name.endswith((_A, _B)) or not name.startswith(_PREFIX):
            raise _invalid(candidate, f"adapter_model.safetensors has {name}, which is no LoRA weight of a layer.")
    for layer, (a, b) in _layers(candidate).items():
        if a is None or b is None:
            raise _invalid(candidate, f"adapter_model.safetensors has only one of lora_A and lora_B of {layer}.")
        if (
            len(a.shape) != 2
            or len(b.shape) != 2
            or a.shape[0] != b.shape[1]
            or not 0 < a.shape[0] <= candidate.max_rank
        ):
            raise _invalid(candidate, f"lora_A and lora_B of {layer} have shapes {a.shape} and {b.shape}.")


def numbers_are_finite(candidate: Candidate, _base: BaseModel) -> None:
    """No number is NaN or infinite.

    NaN that one request leaves in the KV cache reaches later answers of the base model and of other adapters (seen in
    vLLM 0.32 after 200 tokens, and still after the adapter was unloaded).
    """
    if name := candidate.not_finite:
        raise _invalid(candidate, f"{name} has NaN or infinite numbers. Train again with a lower learning rate.")


def base_model_matches(candidate: Candidate, base: BaseModel) -> None:
    """The manifest names the base model. Without one, every layer exists in the base model and has its sizes."""
    manifest = candidate.manifest
    if manifest and base.fingerprint:
        if manifest.base_model_fingerprint != base.fingerprint:
            raise _other_base(candidate, base, f"it was trained on {manifest.base_model_uri}")
        return
    if manifest and manifest.base_model_uri != base.uri:
        raise _other_base(candidate, base, f"it was trained on {manifest.base_model_uri}")
    if base.tensors:
        _layers_fit(candidate, base)


RULES = (
    digest_matches,
    is_plain_lora,
    rank_fits,
    scaling_fits,
    tensors_are_lora_pairs,
    numbers_are_finite,
    base_model_matches,
)


def _layers_fit(candidate: Candidate, base: BaseModel) -> None:
    kinds = {name.removesuffix(".weight").rpartition(".")[2] for name in base.tensors}
    any_known = False
    for layer, (a, b) in _layers(candidate).items():
        weight = base.tensors.get(f"{layer}.weight")
        if weight is None and layer.rpartition(".")[2] in kinds:
            raise _other_base(candidate, base, f"it has weights for {layer}, which that model lacks")
        if weight is None or a is None or b is None:
            continue
        any_known = True
        if weight.dtype in _PLAIN and weight.shape != (b.shape[0], a.shape[1]):
            raise _other_base(
                candidate, base, f"{layer} is {weight.shape} there and {(b.shape[0], a.shape[1])} in the adapter"
            )
    # A checkpoint may name its fused layers otherwise than PEFT does, so one unknown layer proves nothing. If all are
    # unknown, it is another model.
    if not any_known:
        raise _other_base(candidate, base, "none of its layers are in that model")


def layer_names(candidate: Candidate) -> list[str]:
    """The layers that the adapter has weights of, by their names in the base model."""
    return sorted({name.removeprefix(_PREFIX).removesuffix(_A).removesuffix(_B) for name in candidate.tensors})


def _layers(candidate: Candidate) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """lora_A and lora_B of each layer, by the layer's name in the base model; None for one that is missing."""
    found = candidate.tensors
    return {
        name: (found.get(f"{_PREFIX}{name}{_A}"), found.get(f"{_PREFIX}{name}{_B}")) for name in layer_names(candidate)
    }


def _invalid(candidate: Candidate, what: str) -> AdapterRejected:
    return AdapterRejected(Reason.ADAPTER_INVALID, f"{candidate.uri}: {what}")


def _other_base(candidate: Candidate, base: BaseModel, why: str) -> AdapterRejected:
    return AdapterRejected(
        Reason.BASE_MODEL_DIFFERS,
        f"{candidate.uri} is no adapter of {base.uri}: {why}. Train on that model, or use another engine.",
    )
