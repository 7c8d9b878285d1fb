"""How likely a text offends, by the model of alt-profanity-check (English; MIT). Loading it takes two seconds."""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

_PIECE_CHARACTERS = 200
"""The model learnt from comments. In a long text the rest would hide what offends, so its pieces are looked at."""
_PIECE = re.compile(rf"\S.{{0,{_PIECE_CHARACTERS - 1}}}+", re.DOTALL)


@lru_cache(maxsize=1)
def _model() -> tuple[Any, list[tuple[Any, float, float, float]]]:
    """The vectorizer, and of each of its classifiers the weights, the intercept and the two numbers of its sigmoid.

    predict_prob has the same result, but checks each array ten times: 4 ms a call.
    """
    from profanity_check import profanity_check

    classifiers = [
        (each.estimator.coef_.T, float(each.estimator.intercept_[0]), each.calibrators[0].a_, each.calibrators[0].b_)
        for each in profanity_check.model.calibrated_classifiers_
    ]
    return profanity_check.vectorizer, classifiers


def toxicity(text: str) -> tuple[float, str]:
    """The probability that a text offends, from 0 to 1, and the piece of it that does most."""
    pieces = list(_pieces(text))
    if not pieces:
        return 0.0, ""
    vectorizer, classifiers = _model()
    features = vectorizer.transform(pieces)
    scores = [
        ((features @ weights).ravel() + intercept, slope, offset) for weights, intercept, slope, offset in classifiers
    ]
    return max(
        (sum(_sigmoid(slope * float(score[index]) + offset) for score, slope, offset in scores) / len(scores), piece)
        for index, piece in enumerate(pieces)
    )


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(min(value, 700)))


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most 200 characters, each from a word on."""
    at = 0
    while (match := _PIECE.search(text, at)) is not None:
        piece, at = match[0], match.end()
        if at < len(text) and not text[at].isspace() and (cut := max(piece.rfind(" "), piece.rfind("\n"))) > 0:
            piece, at = piece[:cut], match.start() + cut
        yield piece
