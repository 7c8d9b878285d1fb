"""Which rows are held out: decided by their content and the seed, so that the same row never is on both sides."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from sluice_trainer.prepared import TokenRow


def held_out(rows: Sequence[Sequence[TokenRow]], share: float, seed: int) -> list[bool]:
    """For each row, with all parts that it was split into, whether it is held out.

    About `share` of the rows; at least one row as long as another one remains to train on.
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
