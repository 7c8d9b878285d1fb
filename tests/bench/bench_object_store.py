"""A checkpoint on a volume and in an object store: until it is durable, and until a new pod has it in memory again.

Both kinds in one run, in turns (ABBA), on one machine: the volume is a folder of its disk, the store is versitygw, a
real S3 server, on the same disk and the same cores, reached over the loopback. So a store of your own is slower by its
network, and faster by not sharing these cores. Each resume begins with an empty scratch disk, as a new pod does, but
what was just written is still in the machine's memory. `save` is what a checkpoint takes beside the training, which
goes on meanwhile, and at the end of a pod's life; the copy of the state that training waits for is the same for both.
A state has each trained weight and its two moments in float32, all of them random. Seconds: median (least to most).

    python -m tests.bench.bench_object_store
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from sluice_api.stages import StageSpec
from sluice_trainer import base_model
from sluice_trainer.train.checkpoints.checkpoint import Checkpoints
from sluice_trainer.train.checkpoints.state import WEIGHT, Progress, Snapshot
from sluice_trainer.train.weights.model import trainable, with_adapter, without_weights
from tests.object_store import object_store, write_secret

MODELS = Path.home() / ".cache" / "sluice" / "models"
BUCKET = "results"
ABBA = ("volume", "store", "store", "volume")
OUTPUTS = {
    "volume": {"uri": "pvc://results/out"},
    "store": {"uri": f"s3://{BUCKET}/out", "credentials": {"secret": "store"}},
}


@dataclass(frozen=True)
class Setting:
    """What is trained, and how often the four measurements are made."""

    model: str
    method: str
    rounds: int

    def __str__(self) -> str:
        return f"{self.model:<24}{self.method:<6}"


SETTINGS = (
    Setting("tiny", "LoRA", rounds=3),
    Setting("smollm2-135m-instruct", "LoRA", rounds=3),
    Setting("smollm2-135m-instruct", "Full", rounds=2),
)


def stage_of(setting: Setting, output: str) -> StageSpec:
    """A Train stage."""
    spec = {
        "model": {"uri": f"pvc://models/{setting.model}"},
        "dataset": {"uri": "pvc://datasets/none.jsonl"},
        "method": setting.method,
        "training": {"dtype": "float32", "keepCheckpoints": 1},
        "output": OUTPUTS[output],
    }
    names = {"namespace": "bench", "name": f"{setting.model}-{setting.method}".lower(), "uid": "12345678-9abc"}
    return StageSpec.model_validate({**names, "stage": "Train", "attempt": 1, "spec": spec})


def tensors_of(stage: StageSpec) -> dict[str, torch.Tensor]:
    """A state of random numbers, of the shapes that the job trains."""
    model = without_weights(base_model.locate(stage.spec.model.uri))
    trained = trainable(model if stage.spec.method == "Full" else with_adapter(model, stage.spec))
    kinds = (WEIGHT, "exp_avg.", "exp_avg_sq.")
    return {f"{kind}{name}": torch.randn(weight.shape) for name, weight in trained.items() for kind in kinds}


def timed(do: Callable[[], object]) -> float:
    """Seconds that something takes."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def measure(stage: StageSpec, tensors: dict[str, torch.Tensor], step: int) -> tuple[float, float]:
    """Seconds of a save, and of a resume by a pod that has nothing."""

    def resume() -> None:
        new = Checkpoints(stage, plan="a plan")
        found = new.newest_step()
        assert found == step
        assert new.read(found).progress.step == step

    snapshot = Snapshot(Progress(step=step, total_steps=100, learning_rate=0.1), tensors)
    saves = timed(lambda: Checkpoints(stage, plan="a plan").save(lambda: snapshot))
    shutil.rmtree(os.environ["SLUICE_WORK"], ignore_errors=True)
    return saves, timed(resume)


def main() -> None:
    """Measure everything; the table goes to stdout."""
    here, log = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name, object_store(Path(name) / "buckets") as store:
        folder = Path(name)
        store.bucket(BUCKET)
        write_secret(folder / "credentials", "store", store.secret)
        (folder / "volumes" / "results").mkdir(parents=True)
        (folder / "volumes" / "models").symlink_to(MODELS)
        os.environ |= {
            "SLUICE_VOLUMES": str(folder / "volumes"),
            "SLUICE_CREDENTIALS": str(folder / "credentials"),
            "SLUICE_WORK": str(folder / "scratch"),
        }
        here.write(f"{'trained':<30}{'state MB':>9}{'output':>9}{'save s':>27}{'resume s':>27}\n")
        for setting in SETTINGS:
            if not (folder / "volumes" / "models" / setting.model).is_dir():
                here.write(f"{setting}: the model is not in the cache of this machine\n")
                continue
            sys.stdout = log  # the trainer's own events
            tensors = tensors_of(stage_of(setting, "volume"))
            size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
            found: dict[str, list[tuple[float, float]]] = {output: [] for output in OUTPUTS}
            for number in range(setting.rounds):
                for turn, output in enumerate(ABBA):
                    found[output].append(measure(stage_of(setting, output), tensors, 4 * number + turn + 1))
            sys.stdout = here
            for output, seconds in found.items():
                saves, resumes = zip(*seconds, strict=True)
                here.write(f"{setting}{size:>9,.1f}{output:>9}{shown(saves):>27}{shown(resumes):>27}\n")


def shown(seconds: tuple[float, ...]) -> str:
    """Median and range."""
    return f"{median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


if __name__ == "__main__":
    main()
