"""What is made once and kept, and who waits for whom: journeys side by side go by these locks."""

import fcntl
from contextlib import suppress
from pathlib import Path

import pytest

from dev.cache import locked, made_once


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLUICE_CACHE", str(tmp_path))
    return tmp_path


def may_be_had(cache: Path, *, shared: bool) -> bool:
    """Whether another process would have the lock at once."""
    with (cache / "locks" / "one.lock").open("w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("shared", [True, False])
def test_who_shares_a_lock_waits_for_whoever_has_it_alone_and_the_other_way_about(cache: Path, *, shared: bool) -> None:
    with locked("one", shared=shared):
        assert may_be_had(cache, shared=True) is shared
        assert not may_be_had(cache, shared=False)
        with locked("another"):
            pass
    assert may_be_had(cache, shared=False)


def test_what_is_half_made_is_made_anew(cache: Path) -> None:
    target = cache / "thing"
    with suppress(KeyboardInterrupt), made_once(target) as folder:
        assert folder is not None
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert not target.exists()
    with made_once(target) as folder:
        assert folder is not None
        assert not list(folder.iterdir())
    with made_once(target) as folder:
        assert folder is None
