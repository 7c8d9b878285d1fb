"""The random number generators' states: captured at every optimizer step, kept in state.json."""

import base64
import random

import numpy as np
import torch
from torch import Tensor

from sluice_api.model import Model


class Generators(Model):
    """States of Python's, numpy's, torch's and CUDA's global generators."""

    python_words: tuple[int, ...]
    python_gauss: float | None
    numpy_words: tuple[int, ...]
    numpy_position: int
    torch: str
    """Base64 of the state's bytes, like cuda."""
    cuda: str | None

    @classmethod
    def capture(cls) -> "Generators":
        """The states as they are now. Not validated: it is done at every step."""
        _, python_words, python_gauss = random.getstate()
        numpy_state = np.random.get_state(legacy=False)["state"]
        return cls.model_construct(
            python_words=python_words,
            python_gauss=python_gauss,
            numpy_words=tuple(numpy_state["key"].tolist()),
            numpy_position=numpy_state["pos"],
            torch=_text(torch.get_rng_state()),
            cuda=_text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        )

    def restore(self) -> None:
        """Make the global generators continue from here."""
        random.setstate((3, self.python_words, self.python_gauss))
        words = np.array(self.numpy_words, np.uint32)
        np.random.set_state(("MT19937", words, self.numpy_position, 0, 0.0))
        torch.set_rng_state(_tensor(self.torch))
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(_tensor(self.cuda))


def seed_all(seed: int) -> None:
    """Start every generator from the job's seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
