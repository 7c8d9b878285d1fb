"""Log lines: what each of them has, for a program that reads the logs of many runs."""

import json
from dataclasses import replace
from datetime import datetime

from tests.unit.trainer.jobs import Job, events

OF_EVERY_LINE = {"run_id", "timestamp", "agent", "level", "event", "message"}


def test_logs_have_the_run_id_and_each_step_its_figures(job: Job) -> None:
    job = replace(job, training=(("epochs", 1), ("maxSteps", 3), ("warmupSteps", 0)))
    job.prepare()
    log = list(events(job.start("Train")))
    assert all(line.keys() >= OF_EVERY_LINE for line in log), json.dumps(log, indent=1)
    assert {line["run_id"] for line in log} == {"12345678-9abc"}
    assert {line["level"] for line in log} == {"INFO", "METRIC"}
    assert all(datetime.fromisoformat(line["timestamp"]).tzinfo for line in log)
    steps = [line for line in log if line["level"] == "METRIC"]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert [line["epoch"] for line in steps] == [0.2, 0.4, 0.6]
    first = steps[0]
    assert first["message"] == f"step 1 of 3: loss {first['loss']:.4f}"
    assert (first["learning_rate"], first["gradient_norm"] > 0, first["memory_bytes"] > 2**20) == (2e-4, True, True)
    last = [line for line in log if line["event"] == "report"][-1]
    assert (last["learningRate"], last["gradientNorm"]) == (steps[-1]["learning_rate"], steps[-1]["gradient_norm"])
