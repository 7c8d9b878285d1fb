"""Which adapters are tried no more, over the ends of both processes."""

from pathlib import Path

import pytest

from sluice_server.agent.attempts import Attempts
from sluice_server.agent.resources import Key

BAD = Key("bad", 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "attempts.json"


@pytest.mark.parametrize(
    ("rule", "seen", "times"),
    [
        ("another boot has ended of it", {"boot": "2", "healthy": True, "busy": False}, 1),
        ("so it has if the answer is still awaited", {"boot": "2", "healthy": True, "busy": True}, 1),
        ("a dead engine has ended of it", {"boot": "1", "healthy": False, "busy": False}, 1),
        ("a vLLM that lives has not", {"boot": "1", "healthy": True, "busy": False}, 0),
        ("nothing is known while it is tried", {"boot": "1", "healthy": True, "busy": True}, 0),
    ],
)
def test_attempt_is_compared_with_the_next_observation(
    rule: str, seen: dict[str, object], times: int, file: Path
) -> None:
    attempts = Attempts(file)
    for _ in range(2):
        attempts.begin(BAD, "1")
        attempts.observed(**seen)  # type: ignore[arg-type]
    assert attempts.held(BAD) == (times == 1)


def test_agent_that_ended_while_it_fetched_has_left_word(file: Path) -> None:
    for _ in range(2):
        assert not Attempts(file).held(BAD)
        Attempts(file).begin(BAD)
    assert Attempts(file).held(BAD)
    assert not Attempts(file).held(Key("bad", 2))


def test_agent_that_ended_while_vllm_tried_leaves_it_to_the_next_observation(file: Path) -> None:
    Attempts(file).begin(BAD, "1")
    later = Attempts(file)
    later.observed("1", healthy=True, busy=False)
    Attempts(file).begin(BAD, "1")
    later = Attempts(file)
    later.observed("2", healthy=True, busy=False)
    assert not later.held(BAD)
    later.begin(BAD, "2")
    later.observed("3", healthy=True, busy=False)
    assert Attempts(file).held(BAD)


def test_attempts_of_adapters_that_are_gone_are_forgotten(file: Path) -> None:
    attempts = Attempts(file)
    for _ in range(2):
        attempts.begin(BAD, "1")
        attempts.observed("2", healthy=True, busy=False)
    attempts.keep({BAD})
    assert attempts.held(BAD)
    attempts.keep(set())
    assert not Attempts(file).held(BAD)
