"""What a team has that keeps everything on S3: the objects of examples/object-store.yaml, and its buckets."""

import gzip
from typing import Any

import yaml

from dev import models
from dev.cache import REPOSITORY
from tests.e2e import objects
from tests.e2e.kubectl import Object
from tests.e2e.stage import ON_S3
from tests.object_store import ObjectStore

JOB = "support-tone"
MODEL = "s3://models/smollm2-135m-instruct"
"""As the example has it; here it is the tiny one."""
ROWS = "s3://datasets/support/*.csv.gz"
RESULTS = "s3://results/support"
ROW_COUNT = 40
STEPS = 200
"""Enough for a kill in the middle, and for other answers."""
_PARTS = 2


def upload(store: ObjectStore) -> None:
    """Put the model and the rows there, the rows in several files, and make the bucket of results."""
    models.models()
    models.place("tiny", store.bucket("models")).rename(store.folder / MODEL.removeprefix("s3://"))
    folder = store.bucket("datasets") / "support"
    folder.mkdir()
    for part in range(_PARTS):
        rows = [objects.row(number)["messages"] for number in range(part, ROW_COUNT, _PARTS)]
        lines = ["prompt,completion", *(f"{asked['content']},{said['content']}" for asked, said in rows), ""]
        (folder / f"questions-{part}.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    store.bucket("results")


def example(store: ObjectStore) -> tuple[Object, Object, Object]:
    """The example's Secret, engine and job: their Secret, sizes and pool are the tests' own."""
    secret, engine, job = yaml.safe_load_all((REPOSITORY / "examples" / "object-store.yaml").read_text())
    resources = {"gpus": 1, "pool": ON_S3, "cpu": "100m"}
    serving = {**engine["spec"]["serving"], "enforceEager": True}
    return (
        {**secret, "stringData": store.secret},
        changed(engine, "chat", resources={**resources, "memory": "2Gi"}, serving=serving),
        changed(job, JOB, resources={**resources, "memory": "1Gi"}, training=objects.training(STEPS)),
    )


def changed(example: Object, name: str, **spec: Any) -> Object:
    """The same object with another name and with other fields; None takes one away."""
    fields = {field: value for field, value in {**example["spec"], **spec}.items() if value is not None}
    return {**example, "metadata": {"name": name}, "spec": fields}


def at(uri: str, secret: str) -> Object:
    """An address and the Secret that opens it."""
    return {"uri": uri, "credentials": {"secret": secret}}
