"""Imports without the garbage collector."""

import gc
from contextlib import suppress

from sluice_api.imports import importing


def test_the_collector_rests_while_something_is_imported_and_no_longer() -> None:
    """Also where the import fails."""
    seen = []
    try:
        with suppress(ImportError), importing():
            seen.append(gc.isenabled())
            raise ImportError
        assert (seen, gc.isenabled()) == ([False], True)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
