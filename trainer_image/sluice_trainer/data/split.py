"""Chooses the rows that are held out, by their content and the seed: equal rows are never on both sides."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from sluice_trainer.prepared import TokenRow


def held_out(rows: Sequence[Sequence[TokenRow]], share: float, seed: int) -> list[bool]:
    """Decide for each row, with all parts that it was split into, whether it is held out.

    About `share` of the rows are; at least one, unless none would remain to train on.
    """
    texts = (b"".join(part.input_ids.tobytes() for part in row) for row in rows)
    keys = [hashlib.sha256(f"{seed} ".encode() + text).digest() for text in texts]
    copies = Counter(keys)
    if share == 0 or len(copies) < 2:
        return [False] * len(rows)
    wanted = max(1, round(share * len(rows)))
    chosen: set[bytes] = set()
    taken = 0
    for key in sorted(copies):
        if taken + copies[key] <= wanted:
            chosen.add(key)
            taken += copies[key]
    if not chosen:
        chosen.add(min(copies, key=lambda key: (copies[key], key)))
    return [key in chosen for key in keys]
