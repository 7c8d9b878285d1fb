"""The trainer without a cluster: all stages of a finetunejob.yaml, one after the other, on this machine.

Each stage is a process of its own, exactly as in a pod. Its log is shown as text and a progress bar on a terminal, and
passed on as JSON lines elsewhere.
"""

import argparse
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sluice_api.admission import Problem, filled, problems
from sluice_api.data_report import REPORT_HTML, REPORT_JSON, DataReport
from sluice_api.finetunejob import FineTuneJob, FineTuneJobSpec
from sluice_api.meta import GROUP, work_folder
from sluice_api.pods import STAGE_ENV, variables
from sluice_api.sources import is_object, volume_path
from sluice_api.stages import ExitCode, Stage, StageOutcome, StageSpec
from sluice_trainer.data.report import terminal
from sluice_trainer.local_ranks import OUTCOME_ENV
from sluice_trainer.loss_curve import LossCurve
from sluice_trainer.manifest import read_documents
from sluice_trainer.screen import Output, Screen
from sluice_trainer.summary import write_summary
from sluice_trainer.unknown_fields import unknown_field

_PATIENCE_SECONDS = 5.0
"""Between the end of a stage that was stopped and that of this process, if nobody reads its output."""
_BESIDE_FILE = {"SLUICE_CREDENTIALS": "credentials", "SLUICE_CONFIG_MAPS": "configmaps"}
"""Where Secrets and ConfigMaps are: the folders of these names beside the job's file."""
_STAGES = {stage.lower(): stage for stage in Stage}
_ABOUT = """\
Sluice's trainer: fine-tunes a language model on the rows of a dataset, and leaves an adapter (or a model) that vLLM and
PEFT load, with a report. In a cluster the operator starts it; `run` does the same on this machine, and `prepare` shows
what would be trained on."""
_HELP = """\
Train on this machine what a finetunejob.yaml says, without a cluster: on its first GPU, or its CPU, whatever the file
says of GPUs. examples/finetunejob.yaml is a file to begin with.

A pvc:// address means a folder here: pvc://datasets/rows.jsonl is volumes/datasets/rows.jsonl beside the file,
unless --volumes or --claim say otherwise. credentials/<secret>/<KEY> has the value of a Secret's key, and
configmaps/<name>/<key> that of a ConfigMap's. What can't be had here (a pool, a policy, publishing) is passed over.

What is made is in <output.uri>/<job>-<uid8>/: export/ with the adapter or the model, checkpoints/, prepared/ and
report.md. If that is in an object store, report.md is in <job>-<uid8>/ beside the file. On a terminal you see text and
a progress bar; where the output is piped, one JSON object a line.

Ctrl-C saves a checkpoint. The same command again goes on from it. If the file, the rows or the model were edited since,
it begins anew and says so; --only takes what the stage before has left, whatever was edited since."""


_PREPARE_HELP = """\
Check the model and every row of a finetunejob.yaml, without a GPU, and show what would be trained on: what each step
did, what is wrong, some rows with what is learnt marked, and what training will take.

Rows and report are in <output.uri>/<job>-<uid8>/prepared/, as `run` leaves them, so that `run` goes on from there.
Open report.html in a browser for all of it."""
MOST_SHOWN = 5
"""Rows that a report has."""


class CannotRun(Exception):
    """The command or its file is wrong; the message says what to do."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m sluice_trainer", description=_ABOUT)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, about, help_ in (
        ("run", "train on this machine what a finetunejob.yaml says", _HELP),
        ("prepare", "check the rows, and show what would be trained on", _PREPARE_HELP),
    ):
        command = commands.add_parser(
            name, help=about, description=help_, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("file", type=Path, help="the FineTuneJob, as for kubectl apply")
        command.add_argument("--name", help="which FineTuneJob, if the file has several")
        command.add_argument("--volumes", type=Path, help="the folder with a folder for each claim (default: volumes)")
        command.add_argument(
            "--claim", action="append", default=[], metavar="NAME=FOLDER", help="another folder for one claim"
        )
        if name == "run":
            command.add_argument(
                "--only", choices=_STAGES, help="one stage only: each continues what the last one left"
            )
            command.set_defaults(preview=None)
        else:
            command.add_argument(
                "--preview", type=int, default=MOST_SHOWN, choices=range(MOST_SHOWN + 1), metavar="ROWS",
                help=f"how many rows to show, 0 to {MOST_SHOWN} (default: {MOST_SHOWN})",
            )  # fmt: skip
            command.set_defaults(only=Stage.PREPARE.lower())
    chosen = parser.parse_args(arguments)
    try:
        job = read_job(chosen.file, chosen.name)
        folders = claim_folders(job, chosen.volumes or chosen.file.parent / "volumes", chosen.claim)
        stages = [_STAGES[chosen.only]] if chosen.only else list(Stage)
        for variable, name in _BESIDE_FILE.items():
            os.environ.setdefault(variable, str((chosen.file.parent / name).resolve()))
        own = _own_folder(job, folders, chosen.file.parent)
        return _run(job, own, folders, stages, chosen.preview)
    except CannotRun as error:
        sys.stderr.write(f"{error}\n")
        return int(ExitCode.BAD_INPUT)


def read_job(file: Path, name: str | None = None) -> StageSpec:
    """Read the FineTuneJob of a file, as a StageSpec of its first stage.

    Raises:
        CannotRun: there is none, or several, or an API server would refuse it.
    """
    try:
        documents = [found for found in read_documents(file) if isinstance(found, Mapping)]
    except OSError as error:
        raise CannotRun(f"{file}: {error.strerror}. Name a file with a FineTuneJob.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CannotRun(f"{file} is not YAML: {error}") from error
    jobs = {_name(found): found for found in documents if _is_job(found)}
    if not jobs:
        raise CannotRun(f"{file} has no FineTuneJob (kind: FineTuneJob). Start from examples/finetunejob.yaml.")
    if (name is None and len(jobs) > 1) or (name is not None and name not in jobs):
        raise CannotRun(f"{file} has the FineTuneJobs {', '.join(sorted(jobs))}. Choose one with --name.")
    name = name or next(iter(jobs))
    if wrong := problems(FineTuneJob, jobs[name]):
        raise CannotRun(f"{file}, {name}:\n" + "\n".join(map(_explained, wrong)))
    spec = FineTuneJobSpec.model_validate(filled(FineTuneJob, jobs[name])["spec"])
    here = spec.resources.model_copy(update={"gpus": 1, "nodes": 1})
    # The same file is the same job, so that the same command goes on where the last one stopped.
    uid = hashlib.sha256(f"{file.resolve()} {name}".encode()).hexdigest()[:32]
    return StageSpec(
        # Of all attempts, on whatever machine, the one that began last is the newest.
        namespace="alone", name=name, uid=uid, stage=Stage.PREPARE, attempt=int(time.time()),
        spec=spec.model_copy(update={"resources": here}),
    )  # fmt: skip


def _name(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""


def _is_job(document: Mapping[str, Any]) -> bool:
    return document.get("kind") == "FineTuneJob" and str(document.get("apiVersion", "")).startswith(f"{GROUP}/")


def _explained(problem: Problem) -> str:
    """Name a wrong field, as in the user's file, and what to write instead."""
    is_foreign = problem.unknown and problem.path[0] == "spec"
    message = unknown_field(problem.path[1:]) if is_foreign else problem.message
    there = "" if isinstance(problem.value, Mapping) else f" (it is {problem.value!r})"
    return f"  {problem.field}: {message}{there}"


def claim_folders(job: StageSpec, volumes: Path, others: Sequence[str]) -> dict[str, Path]:
    """Find the folder of each claim that a job names.

    Raises:
        CannotRun: one that is read from is not there.
    """
    given: dict[str, Path] = {}
    for option in others:
        claim, separator, folder_name = option.partition("=")
        if not separator:
            raise CannotRun(f"--claim {option}: write a claim and its folder, such as --claim models=/data/models")
        given[claim] = Path(folder_name)
    spec = job.spec
    written = volume_path(spec.output.uri)
    folders: dict[str, Path] = {}
    for claim in spec.volumes:
        folder: Path = given.pop(claim, volumes / claim)
        if written is not None and claim == written.claim:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise CannotRun(
                f"The claim {claim} is no folder here: {folder} is missing. Make it, or name another one with "
                f"--claim {claim}=FOLDER."
            )
        folders[claim] = folder.resolve()
    if given:
        raise CannotRun(f"--claim {', '.join(given)}: the job names no such claim; it names {', '.join(folders)}.")
    return folders


def _own_folder(job: StageSpec, folders: Mapping[str, Path], beside: Path) -> Path:
    """Where the report, the losses and the picture go: into the job's own folder, if that is on this machine."""
    output = volume_path(job.spec.output.uri)
    name = work_folder(job.name, job.uid)
    return beside.resolve() / name if output is None else folders[output.claim] / output.path / name


def _run(job: StageSpec, work: Path, folders: Mapping[str, Path], stages: Sequence[Stage], preview: int | None) -> int:
    """Run the stages in their order, until one fails; returns the exit status.

    Args:
        job: What is run.
        work: Where the report, the losses and the picture go.
        folders: Of each claim.
        stages: Which.
        preview: So many rows of Prepare's report are shown with the rest of it; None: no report is.
    """
    began = time.monotonic()
    outcomes: list[StageOutcome] = []
    curve = LossCurve(work / "losses.jsonl")
    out = Output(sys.stdout)
    shown = Screen.of(out, curve, is_read=True if preview is not None else out.isatty())
    with _only_run(work) as held, tempfile.TemporaryDirectory() as scratch, shown as screen:
        volumes = Path(scratch) / "volumes"
        volumes.mkdir()
        for claim, folder in folders.items():
            (volumes / claim).symlink_to(folder)
        for stage in stages:
            code, outcome = _run_stage(job.model_copy(update={"stage": stage}), volumes, Path(scratch), screen, held)
            if outcome is None or code != ExitCode.DONE:
                screen.ended_badly(stage, code, outcome)
                return code
            screen.done(outcome)
            outcomes.append(outcome)
            if outcome.export is not None:
                seconds = time.monotonic() - began
                screen.finished(write_summary(work, job, outcomes, curve, seconds))
        if preview is not None:
            screen.finished(preview_of(*_prepared(job, work), preview, out))
        return int(ExitCode.DONE)


def _prepared(job: StageSpec, work: Path) -> tuple[Path, str]:
    """The folder with the prepared rows on this machine, and where a person finds it."""
    if not is_object(job.spec.output.uri):
        return work / "prepared", str(work / "prepared")
    from sluice_trainer.work import work_of

    stored = work_of(job)
    folder = stored.folder / "prepared"
    return stored.fetch(folder), stored.address(folder)


def preview_of(prepared: Path, where: str, rows: int, out: Output) -> str:
    """The report of the prepared rows as text, with where it is."""
    file = prepared / REPORT_JSON
    if not file.exists():
        return f"These rows have no report: an older version prepared them. Delete {where}, and run this again."
    report = DataReport.model_validate_json(file.read_bytes())
    return f"\n{terminal.preview(report, rows, colour=terminal.has_colour(out))}\n\n  All of it: {where}/{REPORT_HTML}"


@contextmanager
def _only_run(work: Path) -> Iterator[tuple[int, ...]]:
    """While the block runs, and a stage that it has started and given the descriptor, no other run works in the folder.

    Gives the descriptor that holds the folder; none where it can't be held, which Prepare will say better.

    Raises:
        CannotRun: another run does.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "run.lock").open("a+")
    except OSError:
        yield ()
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CannotRun(
                f"This job runs already, in process {lock.read() or '?'}. Wait for its end or stop it with Ctrl-C, or "
                "give this job another name."
            ) from None
        except OSError:  # a file system without locks
            yield ()
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield (lock.fileno(),)


def _run_stage(
    job: StageSpec, volumes: Path, scratch: Path, screen: Screen, held: tuple[int, ...]
) -> tuple[int, StageOutcome | None]:
    """Run one stage in a process of its own; returns its exit status and its outcome."""
    outcome = scratch / "outcome.json"
    outcome.unlink(missing_ok=True)
    environment = {
        **os.environ,
        **variables(STAGE_ENV, job.to_json()),
        OUTCOME_ENV: str(outcome),
        "SLUICE_VOLUMES": str(volumes),
        "SLUICE_WORK": str(scratch / "work"),
        "SLUICE_METRICS_PORT": os.environ.get("SLUICE_METRICS_PORT", "0"),
    }
    command = [sys.executable, "-m", "sluice_trainer", job.stage.lower()]
    # A process group of its own: Ctrl-C on a terminal comes here alone, and is passed on as a pod's SIGTERM.
    with (
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", errors="replace", process_group=0,
            pass_fds=held,
        ) as process,
        _stopped_together(process),
    ):  # fmt: skip
        screen.begins(job.stage)
        for line in process.stdout or ():
            screen.line(line)
            if screen.is_lost:  # as if the terminal were closed: it saves what it has
                process.terminate()
        code = process.wait()
    result = StageOutcome.model_validate_json(outcome.read_bytes()) if outcome.exists() else None
    return code, result


@contextmanager
def _stopped_together(process: subprocess.Popen[str]) -> Iterator[None]:
    """While the block runs, SIGINT, SIGTERM and a terminal that is closed stop the stage, which saves what it has.

    This process ends soon after it, even if nobody reads what it still has to write.
    """
    ended = threading.Event()

    def end_after_it() -> None:
        code = process.wait()
        if not ended.wait(_PATIENCE_SECONDS):
            os._exit(code)

    def stop(_number: int, _frame: object) -> None:
        process.terminate()
        threading.Thread(target=end_after_it, name="end", daemon=True).start()

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
    numbers = [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        ended.set()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
