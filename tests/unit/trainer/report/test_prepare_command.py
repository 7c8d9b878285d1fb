"""`python -m sluice_trainer prepare job.yaml --preview 2`: the rows are checked here, and the report is shown."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sluice_api.stages import ExitCode
from sluice_trainer.local_run import main, preview_of
from sluice_trainer.screen import Output
from tests.unit.trainer.jobs import REPOSITORY, Job
from tests.unit.trainer.test_local_run import document, environment


def arguments(job: Job, *more: str) -> list[str]:
    """The command's, after `python -m sluice_trainer`."""
    file = job.volumes.parent / "finetunejob.yaml"
    file.write_text(yaml.safe_dump(document()))
    return ["prepare", str(file), "--volumes", str(job.volumes), *more]


def test_prepare_command_shows_the_report_as_text_also_where_it_is_piped(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(job, "--preview", "1")) == ExitCode.DONE
    (prepared,) = (job.volumes / "adapters" / "out").glob("tone-*/prepared")
    shown = capsys.readouterr().out
    assert "36 rows to train on, 4 held out" in shown
    assert shown.count("  | ⟦Arr, item ") == 1
    assert f"All of it: {prepared / 'report.html'}" in shown
    assert not [line for line in shown.splitlines() if line.startswith("{")], "no log lines"


def test_preview_of_rows_without_a_report_says_how_to_get_one(tmp_path: Path) -> None:
    shown = preview_of(tmp_path, str(tmp_path), 5, Output(None))
    assert shown == f"These rows have no report: an older version prepared them. Delete {tmp_path}, and run this again."


def test_prepare_without_a_file_is_the_clusters_stage_and_says_what_to_do_by_hand() -> None:
    command = [sys.executable, "-m", "sluice_trainer", "prepare"]
    ended = subprocess.run(command, env=environment(), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == ExitCode.BAD_INPUT
    assert "python3 -m sluice_trainer prepare finetunejob.yaml" in ended.stderr


@pytest.mark.parametrize("rows", ["6", "-1", "many"])
def test_prepare_command_shows_no_more_rows_than_a_report_has(job: Job, rows: str) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments(job, "--preview", rows))
    assert refused.value.code == 2
