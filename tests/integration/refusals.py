"""What the API server refuses: kind, field, value, and what kubectl says of it.

`tests/unit/api/test_crd.py` holds these tables against the rules: a rule that no row breaks has no proof. The trainer
without a cluster is asked the same: tests/unit/api/test_admission.py.
"""

from copy import deepcopy
from typing import Any

import yaml

from tests.integration.data_refusals import DATA_REFUSED

SMALLEST: dict[str, dict[str, Any]] = {
    manifest["kind"]: manifest
    for manifest in yaml.safe_load_all("""
apiVersion: sluice.dev/v1alpha1
kind: FineTuneJob
metadata: {name: support-tone}
spec:
  model: {uri: "pvc://models/smollm2-135m-instruct"}
  dataset: {uri: "pvc://datasets/support.jsonl"}
  output: {uri: "pvc://adapters/support"}
---
apiVersion: sluice.dev/v1alpha1
kind: InferenceEngine
metadata: {name: chat}
spec:
  model: {uri: "pvc://models/smollm2-135m-instruct"}
---
apiVersion: sluice.dev/v1alpha1
kind: Adapter
metadata: {name: support-tone}
spec:
  engine: chat
  source: {uri: "pvc://adapters/support/export"}
---
apiVersion: sluice.dev/v1alpha1
kind: GPUPool
metadata: {name: h100}
""")
}


def written(field: str, value: Any) -> dict[str, Any]:
    """A value at a dotted path; `[]` is a list with one item, which has what it must have."""
    for part in reversed(field.split(".")):
        name = part.removesuffix("[]")
        value = {name: [merged(ITEMS[name], value)] if part.endswith("[]") else value}
    whole: dict[str, Any] = value
    return whole


ITEMS: dict[str, dict[str, Any]] = {
    "borrowWindows": {"start": "20:00", "end": "07:00"},
    "matchExpressions": {"key": "team", "operator": "Exists"},
    "quotas": {},
    "sources": {"uri": "pvc://datasets/support.jsonl"},
    "steps": {},
    "tolerations": {"key": "spot"},
}
"""The smallest item of each list of objects."""


def merged(manifest: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7396): None removes."""
    result = deepcopy(manifest)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = merged(result.get(key) or {}, value)
        else:
            result[key] = value
    return result


REFUSED: list[tuple[str, str, Any, str]] = [
    ("FineTuneJob", "metadata.name", "support.tone", "write at most 63 lower-case letters, digits and '-'"),
    ("FineTuneJob", "metadata.name", "a" * 64, "write at most 63 lower-case letters, digits and '-'"),
    ("FineTuneJob", "spec.model", None, "spec.model: Required value"),
    (
        "FineTuneJob",
        "spec.model.uri",
        "models/smollm2",
        "spec.model.uri: * write pvc://claim/path, hf://org/name@revision",
    ),
    ("FineTuneJob", "spec.model.uri", "pvc://models/../secrets", "spec.model.uri: * write pvc://claim/path"),
    ("FineTuneJob", "spec.model.uri", "hf://datasets/org/name", "spec.model.uri: * write hf://org/name, a repository"),
    ("InferenceEngine", "spec.model.uri", "hf://datasets/org/x", "spec.model.uri: * write hf://org/name, a repository"),
    *DATA_REFUSED,
    ("FineTuneJob", "spec.output.uri", "hf://org/name", "spec.output.uri: * write pvc://claim/path, a PersistentVolum"),
    (
        "FineTuneJob",
        "spec.publish",
        {"engine": "chat", "name": "a--b"},
        "publish.name: * write a single '-' where '--'",
    ),
    ("FineTuneJob", "spec.publish", {"engine": "chat", "name": "chat"}, "publish.name: * write another name than the"),
    ("FineTuneJob", "spec.trainin", {"epochs": 3}, 'unknown field "spec.trainin"'),
    ("FineTuneJob", "spec.lora.alhpa", 3, 'unknown field "spec.lora.alhpa"'),
    (
        "InferenceEngine",
        "metadata.name",
        "4chat",
        "write at most 50 lower-case letters, digits and '-', a letter first",
    ),
    ("InferenceEngine", "metadata.name", "a" * 51, "write at most 50 lower-case letters, digits and '-'"),
    (
        "InferenceEngine",
        "spec.preemption.lendTo",
        "Selected",
        "preemption.lendToNamespaces: * belongs to lendTo: Selected; write both or neither",
    ),
    (
        "InferenceEngine",
        "spec.preemption.reclaimAbove",
        8,
        "preemption.reclaimAbove: * belongs to reclaim: OnDemand; write both or neither",
    ),
    (
        "InferenceEngine",
        "spec.preemption.borrowWindows",
        [{"start": "8 pm", "end": "07:00"}],
        "borrowWindows[0].start: * write hours and minutes, such as 22:00",
    ),
    (
        "InferenceEngine",
        "spec.preemption.borrowWindows",
        [{"start": "08:00", "end": "08:00"}],
        "borrowWindows[0].end: * write another end: this window never opens",
    ),
    (
        "GPUPool",
        "spec.allowedNamespaces",
        {"matchExpressions": [{"key": "team", "operator": "In"}]},
        "values: * In and NotIn need values",
    ),
    (
        "GPUPool",
        "spec.tolerations",
        [{"key": "example.com/spot", "operator": "Exists", "value": "yes"}],
        "tolerations[0].value: * leave it out with operator Exists, or use Equal",
    ),
    (
        "GPUPool",
        "spec.tolerations",
        [{"key": "node.kubernetes.io/unreachable"}],
        "tolerations[0].key: * leave these taints out",
    ),
    ("GPUPool", "spec.quotas", [{"maxGPUs": -1}], "spec.quotas[0].maxGPUs: * should be greater than or equal to 0"),
    (
        "FineTuneJob",
        "spec.scheduling.notBefore",
        "9999-12-31T23:59:59Z",
        "notBefore: * write a moment between 1970 and",
    ),
    (
        "FineTuneJob",
        "spec.scheduling.notBefore",
        "0001-01-01T00:00:00Z",
        "notBefore: * write a moment between 1970 and",
    ),
    ("FineTuneJob", "spec.scheduling.notBefore", "2027-01-04T20:00:00", "notBefore: * must be of type date-time"),
    ("InferenceEngine", "spec.lora.maxRank", 513, "spec.lora.maxRank: * should be less than or equal to 512"),
    (
        "InferenceEngine",
        "spec.serving",
        {"allowedMediaDomains": ["https://images.example.org"]},
        "spec.serving.allowedMediaDomains[0]: * write a host name in lower case, such as images.example.org",
    ),
    ("InferenceEngine", "spec.lora.volumeClaims", ["a", "a"], 'spec.lora.volumeClaims[1]: Duplicate value: "a"'),
    ("InferenceEngine", "spec.lora.volumeClaims", [f"c{i}" for i in range(17)], "spec.lora.volumeClaims: Too many: 17"),
    ("Adapter", "metadata.name", "support--tone", "write a single '-' where '--' is"),
    ("Adapter", "metadata.name", "chat", "write another name than the engine's"),
    ("Adapter", "spec.source.digest", "5e5e", "spec.source.digest: * write sha256: and 64 hexadecimal digits"),
    ("GPUPool", "spec.nodeSelector", {"a b": "c"}, "spec.nodeSelector: * write each label's name as nodes have it"),
    ("GPUPool", "spec.nodeSelector", {"a": "b c"}, "spec.nodeSelector[a]: * write a label's value"),
    ("GPUPool", "spec.nodeSelector", {f"l{i}": "v" for i in range(17)}, "spec.nodeSelector: Too many: 17"),
    ("GPUPool", "spec.resourceName", "gpu/", "spec.resourceName: * write a qualified name, such as nvidia.com/gpu"),
]

UNCHANGEABLE: list[tuple[str, str, Any, str]] = [
    ("FineTuneJob", "spec.model.uri", "pvc://models/other", "spec.model: *"),
    ("FineTuneJob", "spec.method", "QLoRA", "spec.method: *"),
    ("FineTuneJob", "spec.dataset.onBadRow", "Skip", "spec.dataset: *"),
    ("FineTuneJob", "spec.lora.rank", 8, "spec.lora: *"),
    ("FineTuneJob", "spec.training.epochs", 4, "spec.training: *"),
    ("FineTuneJob", "spec.resources.gpus", 2, "spec.resources: *"),
    ("FineTuneJob", "spec.output.uri", "pvc://adapters/other", "spec.output: *"),
    ("FineTuneJob", "spec.publish", {"engine": "chat", "name": "tone"}, "spec.publish: *"),
    ("FineTuneJob", "spec.resumeFrom", "pvc://adapters/out/tone-12345678", "spec.resumeFrom: *"),
    ("FineTuneJob", "spec.activeDeadlineSeconds", 60, "spec.activeDeadlineSeconds: *"),
    ("FineTuneJob", "spec.stageDeadlineSeconds", 60, "spec.stageDeadlineSeconds: *"),
    ("FineTuneJob", "spec.retry", {"attempts": 6}, "spec.retry: *"),
    ("FineTuneJob", "spec.managedBy", "kueue.x-k8s.io/multikueue", "spec.managedBy: *"),
    ("Adapter", "spec.engine", "other", "spec.engine: *"),
]
"""Of the smallest object of each kind; the message goes on with `cannot be changed`."""

SPELLINGS: list[tuple[str, bool]] = [
    ("training: {learningRate: '2e-4'}", True),
    ("training: {learningRate: 2e-4}", False),
    ("training: {learningRate: 0.0002}", False),
    ("training: {learningRate: 1}", False),
    ("training: {maxSteps: 2}", True),
    ("training: {maxSteps: '2'}", False),
    ("training: {maxSteps: 2.0}", True),
    ("training: {maxSteps: 2.5}", False),
    ("training: {maxSteps: 1_000}", True),
    ("training: {maxSteps: 0x10}", True),
    ("training: {maxSteps: 010}", True),
    ("training: {maxSteps: 1:30}", False),
    ("training: {maxSteps: true}", False),
    ("training: {compile: yes}", True),
    ("training: {compile: on}", True),
    ("training: {compile: 'true'}", False),
    ("training: {compile: 1}", False),
    ("training: {batchSize: 4, microBatchSize: 3}", False),
    ("training: {batchSize: 4, microBatchSize: 4}", True),
    ("training: {epochs: 2, epochs: 3}", True),
    ("training: {epochs: null}", True),
    ("training: null", True),
    ("training: []", False),
    ("training: {maxSteps: null}", True),
    ("training: {learning_rate: '2e-4'}", False),
    ("dataset: {uri: 'pvc://d/a.jsonl', validationSplit: 0.1}", False),
    ("dataset: {uri: 'pvc://d/a.jsonl', validationSplit: 10}", False),
    ("dataset: {uri: 'pvc://d/a.jsonl', validationSplit: 10%}", True),
    ("dataset: {uri: 'pvc://d/a b.jsonl'}", True),
    ("dataset: {uri: 'pvc://d/Übung (1) + 50%25, a=b#c@d.jsonl'}", True),
    ("dataset: {uri: 'pvc://d/ a.jsonl'}", False),
    ("dataset: {uri: 'pvc://d/a/../../b.jsonl'}", False),
    ("model: {uri: 'pvc://d/a*'}", False),
    ("model: {uri: 'hf://datasets/org/name'}", False),
    ("model: {uri: 'hf://datasets-org/name'}", True),
    ("dataset: {uri: pvc://d/a.jsonl}", True),
    ("lora: {targetModules: [q_proj, v_proj]}", True),
    ("lora: {targetModules: [q_proj, q_proj]}", False),
    ("lora: {targetModules: q_proj}", False),
    ("lora: {targetModules: null}", True),
    ("lora: {dropout: 0.1}", False),
    ("lora: {dropout: '.1'}", False),
    ("method: qlora", False),
    ("resources: {memory: 8}", False),
    ("resources: {memory: 8Gi, cpu: '2'}", True),
    ("resources: {cpu: 2}", False),
    ("scheduling: {notBefore: 2027-01-04T20:00:00Z}", True),
    ("scheduling: {notBefore: '2027-01-04T20:00:00+01:00'}", True),
    ("scheduling: {notBefore: 2027-01-04}", False),
    ("scheduling: {notBefore: 2027-01-04 20:00:00Z}", False),
    ("scheduling: {share: 30%}", True),
    ("suspend: no", True),
    ("suspend: 'no'", False),
]
"""What a person may write in a FineTuneJob's spec, as YAML, and whether it is taken."""


def spelt(text: str) -> str:
    """The smallest FineTuneJob with a line of YAML in its spec, instead of the field that the line is of."""
    spec = {key: value for key, value in SMALLEST["FineTuneJob"]["spec"].items() if not text.startswith(f"{key}:")}
    kept = "".join(f"  {line}\n" for line in yaml.safe_dump(spec).splitlines())
    head = "apiVersion: sluice.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: spelt}\nspec:\n"
    return f"{head}{kept}  {text}\n"
