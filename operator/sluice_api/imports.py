"""How a process of the trainer's or the server's image imports torch, transformers or vLLM."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import without Python's garbage collector, and let it pass over what was imported ever after.

    Modules, classes and functions stay for the process's life. To look through them again and again while they become
    more is a fifth of the CPU time that these imports take.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
