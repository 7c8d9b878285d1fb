"""Errors that are the GPU's own, and processes that the kernel killed."""

from pathlib import Path

import pytest

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageOutcome
from sluice_trainer import local_ranks
from sluice_trainer.gpu_errors import is_gpu_error
from sluice_trainer.outcome import outcome_of
from tests.unit.trainer.jobs import REPOSITORY, Job


@pytest.mark.parametrize(
    ("text", "of_the_gpu"),
    [
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: uncorrectable NVLink error detected during the execution", True),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", True),
        ("CUDA error: unknown error", True),
        ("No CUDA GPUs are available: no CUDA-capable device is detected", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: device-side assert triggered", False),
        ("unknown error", False),
    ],
)
def test_gpu_errors_are_told_from_other_errors(text: str, of_the_gpu: bool) -> None:
    assert is_gpu_error(f"RuntimeError: {text}") is of_the_gpu


FAILS = """
import sys, types
def prepare(*_):
    raise {error}
sys.modules["sluice_trainer.data.prepare"] = module = types.ModuleType("prepare")
module.prepare = prepare
"""


def test_gpu_error_becomes_the_outcome_gpu_failed(tmp_path: Path) -> None:
    error = 'RuntimeError("CUDA error: uncorrectable ECC error encountered")'
    reason, code, message = outcome_of_prepare(tmp_path, error)
    assert (reason, code) == (Reason.GPU_FAILED, ExitCode.INTERNAL)
    assert "uncorrectable ECC error" in message


def test_prepare_without_memory_says_which_and_what_to_do(tmp_path: Path) -> None:
    reason, code, message = outcome_of_prepare(tmp_path, "MemoryError")
    assert (reason, code) == (Reason.OUT_OF_MEMORY, ExitCode.BAD_INPUT)
    assert message.startswith("Prepare's memory does not hold the rows. Raise resources.memory, of which Prepare has")


def outcome_of_prepare(folder: Path, error: str) -> tuple[str, int, str]:
    """Reason, exit code and message of a Prepare that fails so."""
    (folder / "sitecustomize.py").write_text(FAILS.format(error=error))
    job = Job(folder)
    process = job.start("Prepare", PYTHONPATH=f"{folder}:{REPOSITORY}/operator:{REPOSITORY}/trainer_image")
    process.communicate(timeout=60)
    return job.outcome().reason, process.returncode, job.outcome().message


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ("low 0\noom 1\noom_kill 1\n", Reason.OUT_OF_MEMORY),
        ("low 0\noom 1\noom_kill 0\n", Reason.TRAINER_FAILED),
        (None, Reason.TRAINER_FAILED),
    ],
)
def test_killed_rank_is_out_of_memory_only_if_the_kernel_says_so(
    events: str | None, reason: Reason, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.events"
    if events is not None:
        file.write_text(events)
    monkeypatch.setattr(local_ranks, "MEMORY_EVENTS", file)
    assert local_ranks._error(1, -9, tmp_path / "outcome.json").reason is reason
    assert local_ranks._error(1, -11, tmp_path / "outcome.json").reason is Reason.TRAINER_FAILED


class Panic(BaseException):
    """What a library written in Rust raises where it gives up."""


@pytest.mark.parametrize("error", [Panic("invalid host"), RuntimeError("invalid host")])
def test_whatever_ends_a_stage_is_told(error: BaseException) -> None:
    def work() -> StageOutcome:
        raise error

    outcome, code = outcome_of(work)
    assert (outcome.reason, code) == (Reason.TRAINER_FAILED, ExitCode.INTERNAL)
    assert "invalid host" in outcome.message
