"""Imports without the garbage collector."""

import gc
from contextlib import suppress

from sluice_api.imports import importing


def test_garbage_collector_is_off_during_imports_only() -> None:
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
