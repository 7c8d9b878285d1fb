"""One stage, one process: `python3 -m sluice_trainer prepare|train|export` with a StageSpec in SLUICE_STAGE.

SIGTERM is handled from the first line on, and nothing heavy is
imported before the first report is out. `python3 -m sluice_trainer run` does all three without a cluster, and `prepare`
with a file the first one.
"""
# ruff: noqa: E402

import sys

if sys.argv[1:] not in (["prepare"], ["train"], ["export"]):
    from sluice_trainer import local_run

    sys.exit(local_run.main(sys.argv[1:]))

from sluice_trainer.signals import Save, StopSignal

STOP = StopSignal()

import io
import logging
import os
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from sluice_api.imports import importing
from sluice_api.pods import REPORT_URL_ENV, STAGE_ENV, TERMINATION_FILE, told
from sluice_api.reasons import Reason
from sluice_api.reports import Activity
from sluice_api.stages import ExitCode, Stage, StageOutcome, StageSpec
from sluice_api.training import Method
from sluice_trainer import failpoints, local_ranks, logs
from sluice_trainer.errors import PeerLost, StageError
from sluice_trainer.outcome import outcome_of
from sluice_trainer.ranks import Rank
from sluice_trainer.report import TIMEOUT_SECONDS, Reporter, SilentReporter


def main() -> NoReturn:
    """Run the stage and end with its outcome."""
    os.umask(0o022)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what libraries print is not lost at the end, nor late
    stage = _stage()
    logs.always(run_id=stage.uid)
    rank = Rank.here(stage)
    if rank.size > 1:
        logs.always(rank=rank.number)
    reporter = (Reporter if rank.leads else SilentReporter)(stage.attempt, os.environ.get(REPORT_URL_ENV))
    reporter.start()  # before SIGTERM may end it
    logs.when_unread(lambda: STOP.end(None))
    STOP.set_end_handler(lambda error, save: _end_early(error, save, rank, reporter))
    _configure_libraries(stage)
    outcome, code = outcome_of(lambda: _run(stage, rank, reporter))
    STOP.claim_end()
    _end(outcome, code, reporter)


def _stage() -> StageSpec:
    """Read the StageSpec. An operator of another version may send one that this image doesn't know."""
    if STAGE_ENV not in os.environ:
        by_hand = (
            "prepare finetunejob.yaml" if sys.argv[1] == "prepare" else f"run finetunejob.yaml --only {sys.argv[1]}"
        )
        command = f"python3 -m sluice_trainer {by_hand}"
        sys.stderr.write(f"In a cluster the operator starts this stage, with {STAGE_ENV}. By hand it is: {command}\n")
        sys.exit(ExitCode.BAD_INPUT)
    try:
        stage = StageSpec.model_validate_json(told(STAGE_ENV))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        what = f"{'.'.join(map(str, first['loc'])) or STAGE_ENV}: {first['msg']}"  # without the value: it may be secret
        message = f"{STAGE_ENV} is no StageSpec of this image's version; operator and image must match. {what}"
        _write_outcome(StageOutcome(reason=Reason.TRAINER_FAILED, message=message[:2000]), ExitCode.INTERNAL)
        sys.exit(ExitCode.INTERNAL)
    if sys.argv[1:] != [stage.stage.lower()]:
        raise SystemExit(f"usage: python3 -m sluice_trainer {stage.stage.lower()}, as {STAGE_ENV} says")
    return stage


def _run(stage: StageSpec, rank: Rank, reporter: Reporter) -> StageOutcome:
    """Run the stage. Each imports what it needs only here: torch alone takes seconds."""
    failpoints.reached("stage-begins")
    match stage.stage:
        case Stage.PREPARE:
            with importing():
                from sluice_trainer.data.prepare import prepare

            return StageOutcome(reason=Reason.DONE, prepare=prepare(stage, reporter))
        case Stage.TRAIN:
            if rank.gpu > 0:
                local_ranks.end_with_parent()
            elif rank.gpus > 1:
                local_ranks.start(rank, STOP)
            with importing():
                from sluice_trainer.train.loop import train

            try:
                result = train(stage, rank, reporter, STOP)
            except PeerLost as lost:
                STOP.end(lost, patience=STOP.PEER_PATIENCE_SECONDS)
            return StageOutcome(reason=Reason.DONE, train=result if rank.leads else None)
        case Stage.EXPORT:
            with importing():
                from sluice_trainer.export.export import export

            return StageOutcome(reason=Reason.DONE, export=export(stage, reporter))


def _end_early(error: StageError | None, save: Save | None, rank: Rank, reporter: Reporter) -> NoReturn:
    """End the process after SIGTERM or a failure of the group. The main thread may still be in a step meanwhile."""
    error = error or StageError(Reason.REQUEUED, "Told to stop", ExitCode.REQUEUE)
    logs.info("stops", reason=error.reason)

    def saved() -> StageOutcome:
        try:
            result = save() if save is not None else None
        except StageError as lost:
            if error.code == ExitCode.REQUEUE:
                raise
            return StageOutcome(reason=error.reason, message=f"{error.message} {lost.message}"[:2000])
        if error.code != ExitCode.REQUEUE:
            return StageOutcome(reason=error.reason, message=error.message[:2000], train=result)
        if result is not None:
            rest = f"step {result.checkpoint_step} of {result.total_steps} is saved."
        else:
            rest = "there was nothing to save yet." if rank.leads else "what there is to save is rank 0's."
        return StageOutcome(reason=error.reason, message=f"{error.message}; {rest}", train=result)

    outcome, code = outcome_of(saved)
    _end(outcome, error.code if outcome.reason == error.reason else code, reporter)


def _end(outcome: StageOutcome, code: ExitCode, reporter: Reporter) -> NoReturn:
    """End the process: write the outcome, send the last report, exit. Only for the thread that StopSignal chose."""
    _write_outcome(outcome, code)
    changes: dict[str, Any] = {"activity": Activity.FINISHED} if code == ExitCode.DONE else {}
    if outcome.train is not None:
        changes |= outcome.train.model_dump(include={"step", "total_steps", "checkpoint_step"})
    reporter.close(**changes)
    logs.flush(TIMEOUT_SECONDS)
    os._exit(code)


def _write_outcome(outcome: StageOutcome, code: ExitCode) -> None:
    file = Path(os.environ.get(local_ranks.OUTCOME_ENV, TERMINATION_FILE))
    file.write_text(outcome.termination_message(), encoding="utf-8")
    logs.info("end", code=int(code), **outcome.model_dump(mode="json", by_alias=True, exclude_none=True))


def _configure_libraries(stage: StageSpec) -> None:
    """Set the environment variables that libraries read when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    for name in ("bitsandbytes", "torch.utils.flop_counter"):  # what they miss is not needed
        logging.getLogger(name).setLevel(logging.ERROR)
    if stage.spec.method is not Method.QLORA:
        # PEFT imports it whenever it is there, and it imports the whole of torch's compiler.
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    if not any(uri.startswith("hf://") for uri in (stage.spec.model.uri, *stage.spec.dataset.shown)):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


if __name__ == "__main__":
    main()
