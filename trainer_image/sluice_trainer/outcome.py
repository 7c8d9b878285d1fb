"""How a stage ends: its work, or whatever it raises, as an outcome. Here, and nowhere else, exceptions become one."""

import sys
import traceback
from collections.abc import Callable

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageOutcome
from sluice_trainer.errors import MORE_MEMORY, StageError
from sluice_trainer.gpu_errors import is_gpu_error


def outcome_of(work: Callable[[], StageOutcome]) -> tuple[StageOutcome, ExitCode]:
    """What a stage comes to, and the exit code that says so: its own outcome, or that of the error that ends it."""
    try:
        return work(), ExitCode.DONE
    except StageError as error:
        return StageOutcome(reason=error.reason, message=error.message[:2000]), error.code
    except MemoryError:
        return _out_of_memory("host")
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - here they become outcomes; a panic of Rust's is no Exception
        # torch is not imported here, so its error is known by name.
        if type(error).__name__ == "OutOfMemoryError":
            return _out_of_memory("GPU")
        if "DefaultCPUAllocator" in str(error):
            return _out_of_memory("host")
        traceback.print_exc()
        last_line = traceback.format_exception_only(error)[-1].strip()
        if is_gpu_error(last_line):
            return StageOutcome(reason=Reason.GPU_FAILED, message=last_line[:2000]), ExitCode.INTERNAL
        return StageOutcome(reason=Reason.TRAINER_FAILED, message=last_line[:2000]), ExitCode.INTERNAL


def _out_of_memory(where: str) -> tuple[StageOutcome, ExitCode]:
    traceback.print_exc()
    if sys.argv[1] == "prepare":
        message = f"Prepare's memory does not hold the rows. {MORE_MEMORY}"
    elif sys.argv[1] == "export":
        message = f"The {where}'s memory does not hold the model. Raise resources.memory."
    else:
        message = f"The {where}'s memory does not hold one micro batch. {Reason.OUT_OF_MEMORY.next_step}"
    return StageOutcome(reason=Reason.OUT_OF_MEMORY, message=message), ExitCode.BAD_INPUT
