"""Buckets: a noisy poster is held back, and no other."""

from sluice_operator.progress.limits import Buckets


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rate_limit_allows_a_burst_then_the_rate() -> None:
    clock = Clock()
    buckets = Buckets(2, 10, clock)
    assert [buckets.take("a") for _ in range(10)] == [0] * 10
    assert buckets.take("a") == 1
    assert buckets.take("b") == 0
    clock.now = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") == 1


def test_retry_after_is_when_the_next_report_is_allowed() -> None:
    clock = Clock()
    buckets = Buckets(0.1, 1, clock)
    assert buckets.take("a") == 0
    assert buckets.take("a") == 10
    clock.now = 10
    assert buckets.take("a") == 0


def test_rate_limit_memory_is_bounded_and_forgets_idle_posters() -> None:
    clock = Clock()
    buckets = Buckets(2, 10, clock, most=100)
    assert all(buckets.take(f"pod-{n}") == 0 for n in range(100))
    assert buckets.take("one more") == 1
    clock.now = 6
    assert buckets.take("one more") == 0
    assert len(buckets) == 1
