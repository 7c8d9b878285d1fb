"""What both trainers learn in bench_train: its rows, and the settings that decide the result.

Only the standard library is imported here: the seconds until a trainer's first step count this module's imports too.
"""

import math
import random
from typing import Any

EPOCHS = 1
BATCH_ROWS = 8
LONGEST_ROW = 1_024
LEARNING_RATE = 2e-4
RANK = 16
ALPHA = 32
SEED = 42

_MEDIAN = 120
_SPREAD = 1.25
"""Deviation of the lengths' logarithm. Eight rows have about as many tokens as two full packs of TRL's then."""
_TEMPLATE_TOKENS = 32
"""What SmolLM2's chat template puts around a question and an answer, its system prompt included."""
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house service"
)
"""Each is one token, behind a space and at a line's begin."""


def skewed_rows(count: int) -> list[dict[str, Any]]:
    """Conversations of log-normal length; the answer, which the loss counts, says the question's words in reverse."""
    draw, words = random.Random(SEED), _WORDS.split()
    rows = []
    for _ in range(count):
        tokens = min(LONGEST_ROW, round(draw.lognormvariate(math.log(_MEDIAN), _SPREAD)))
        said = draw.choices(words, k=max(2, (tokens - _TEMPLATE_TOKENS) // 2))
        turns = (("user", said), ("assistant", said[::-1]))
        rows.append({"messages": [{"role": role, "content": " ".join(text)} for role, text in turns]})
    return rows
