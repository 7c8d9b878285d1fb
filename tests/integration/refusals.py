"""What the API server refuses: kind, field, value, and what kubectl says of it.

`tests/unit/api/test_crd.py` holds these tables against the rules: a rule that no row breaks has no proof. The trainer
without a cluster is asked the same: tests/unit/api/test_admission.py.
"""

from copy import deepcopy
from typing import Any

import yaml

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
    ("FineTuneJob", "spec.dataset.uri", "ftp://host/rows", "spec.dataset.uri: * write pvc://claim/path, s3://bucket/p"),
    ("FineTuneJob", "spec.dataset.uri", "s3://bucket", "spec.dataset.uri: * write pvc://claim/path, s3://bucket/path"),
    ("FineTuneJob", "spec.dataset.uri", "s3://bucket/../rows", "spec.dataset.uri: * write pvc://claim/path, s3://buck"),
    ("FineTuneJob", "spec.dataset.uri", None, "spec.dataset.uri: * write dataset.uri, or dataset.sources for several"),
    (
        "FineTuneJob",
        "spec.dataset.sources",
        [{"uri": "pvc://datasets/rows.jsonl"}],
        "spec.dataset.uri: * write dataset.uri, or dataset.sources for several",
    ),
    ("FineTuneJob", "spec.dataset.sources", [{"weight": "2"}], "spec.dataset.sources[0].uri: * write where the rows"),
    (
        "FineTuneJob",
        "spec.dataset.sources",
        [{"uri": "pvc://datasets/a", "weight": "101"}],
        "spec.dataset.sources[0].weight: * must be at most 100",
    ),
    ("FineTuneJob", "spec.dataset.validation", {"format": "Text"}, "spec.dataset.validation.uri: * write where the ro"),
    ("FineTuneJob", "spec.dataset.split", "test", "spec.dataset.config: * config and split belong to an hf://datasets"),
    ("FineTuneJob", "spec.dataset.split", "a b", "spec.dataset.split: * write the name of a configuration or a split"),
    ("FineTuneJob", "spec.dataset.fields", {"label": "x"}, 'unknown field "spec.dataset.fields.label"'),
    ("FineTuneJob", "spec.dataset.steps", [{}], "spec.dataset.steps[0]: * write one of clean, filter, deduplicate, re"),
    (
        "FineTuneJob",
        "spec.dataset.steps",
        [{"clean": {}, "redact": {}}],
        "spec.dataset.steps[0]: * write one of clean, filter, deduplicate, re",
    ),
    (
        "FineTuneJob",
        "spec.dataset.steps",
        [{"filter": {"maxRepetition": "1.5"}}],
        "spec.dataset.steps[0].filter.maxRepetition: * must be at most 1",
    ),
    (
        "FineTuneJob",
        "spec.dataset.steps",
        [{"filter": {"minCharacters": 9, "maxCharacters": 8}}],
        "spec.dataset.steps[0].filter.minCharacters: * must not be more than maxCharacters",
    ),
    (
        "FineTuneJob",
        "spec.dataset.steps",
        [{"chunk": {"tokens": 64, "overlap": 33}}],
        "spec.dataset.steps[0].chunk.overlap: * must be at most half of tokens",
    ),
    (
        "FineTuneJob",
        "spec.dataset.steps",
        [{"filter": {"languages": ["EN"]}}],
        "spec.dataset.steps[0].filter.languages[0]: * write a language by its code",
    ),
    (
        "FineTuneJob",
        "spec.dataset.steps",
        [{"deduplicate": {"near": "0"}}],
        "spec.dataset.steps[0].deduplicate.near: * must be at least 0.3",
    ),
    ("FineTuneJob", "spec.model.chatTemplate", {}, "spec.model.chatTemplate: * write one of name, uri and inline"),
    ("InferenceEngine", "spec.servedNames", ["/x"], "spec.servedNames[0]: * write a model's name of letters, digits"),
    ("FineTuneJob", "spec.dataset.validationSplit", "50%", "validationSplit: * write a share from 0% to 49%"),
    ("FineTuneJob", "spec.dataset.format", "CSV", 'spec.dataset.format: * "CSV": supported values: "Auto", "Messages"'),
    ("FineTuneJob", "spec.method", "DoRA", 'spec.method: * "DoRA": supported values: "LoRA", "QLoRA", "Full"'),
    (
        "FineTuneJob",
        "spec",
        {"method": "Full", "publish": {"engine": "chat", "name": "tone"}},
        "spec.publish: * leave it out with method Full",
    ),
    ("FineTuneJob", "spec.resources.ephemeralStorage", "0", "ephemeralStorage: * write a whole number of Gi or Ti"),
    ("FineTuneJob", "spec.imagePullSecrets", ["my registry"], "imagePullSecrets[0]: * write the name of a Secret"),
    (
        "InferenceEngine",
        "spec.resources.ephemeralStorage",
        "1000Mb",
        "ephemeralStorage: * write a whole number of Gi or",
    ),
    ("InferenceEngine", "spec.clients", {"from": "Selected"}, "spec.clients.namespaces: * namespaces belongs to from"),
    ("InferenceEngine", "spec.imagePullSecrets", ["-"], "spec.imagePullSecrets[0]: * write the name of a Secret"),
    ("FineTuneJob", "spec.lora.rank", 0, "spec.lora.rank: * should be greater than or equal to 1"),
    ("FineTuneJob", "spec.lora.rank", 513, "spec.lora.rank: * should be less than or equal to 512"),
    ("FineTuneJob", "spec.training.learningRate", "fast", "learningRate: * write a decimal number as a string"),
    ("FineTuneJob", "spec.training.learningRate", 0.1, "spec.training.learningRate: * must be of type string"),
    (
        "FineTuneJob",
        "spec.training.learningRate",
        "1e9999999",
        "learningRate: * write an exponent of at most two digits",
    ),
    (
        "FineTuneJob",
        "spec.training.adamBeta1",
        "near one",
        "spec.training.adamBeta1: * write a decimal number as a str",
    ),
    ("FineTuneJob", "spec.lora.dropout", "1e9999999", "spec.lora.dropout: * write an exponent of at most two digits"),
    ("FineTuneJob", "spec.training.adamBeta2", "1.5", "spec.training.adamBeta2: * must be less than 1"),
    ("FineTuneJob", "spec.lora.dropout", "1", "spec.lora.dropout: * must be less than 1"),
    ("FineTuneJob", "spec.training.learningRate", "100", "spec.training.learningRate: * must be at most 10"),
    ("FineTuneJob", "spec.training.weightDecay", "11", "spec.training.weightDecay: * must be at most 10"),
    ("FineTuneJob", "spec.training.adamEpsilon", "1.5", "spec.training.adamEpsilon: * must be at most 1"),
    (
        "FineTuneJob",
        "spec.training.maxGradientNorm",
        "2000000",
        "spec.training.maxGradientNorm: * must be at most 10000",
    ),
    ("FineTuneJob", "spec.training.preferenceBeta", "101", "spec.training.preferenceBeta: * must be at most 100"),
    (
        "FineTuneJob",
        "spec.training",
        {"batchTokens": 4096, "microBatchSize": 2},
        "spec.training.microBatchSize: * leave it out with batchTokens",
    ),
    (
        "FineTuneJob",
        "spec.training.exportedCheckpoint",
        "Best",
        "spec.training.evaluateEverySteps: * must be set with exportedCheckpoint Best",
    ),
    (
        "FineTuneJob",
        "spec",
        {"method": "Full", "dataset": {"format": "Preference"}},
        "spec.method: * use LoRA or QLoRA for rows of Preference",
    ),
    (
        "FineTuneJob",
        "spec",
        {"method": "QLoRA", "training": {"sharding": "Always"}},
        "spec.training.sharding: * use Auto or Never with method QLoRA",
    ),
    ("FineTuneJob", "spec.training.schedule", "Cubic", 'spec.training.schedule: * "Cubic": supported values: "Cosine"'),
    ("FineTuneJob", "spec.lora.targetModules", ["q proj"], "spec.lora.targetModules[0]: * write a layer's last name"),
    ("FineTuneJob", "spec.training.epochs", "three", "spec.training.epochs: * must be of type integer"),
    (
        "FineTuneJob",
        "spec.training.microBatchSize",
        3,
        "spec.training.batchSize: * must be a multiple of microBatchSize",
    ),
    (
        "FineTuneJob",
        "spec.resources.nodes",
        9,
        "training.batchSize: * must be at least resources.gpus x resources.nodes",
    ),
    (
        "FineTuneJob",
        "spec",
        {"scheduling": {"policy": "Shared"}, "resources": {"gpus": 2}},
        "spec.resources.gpus: * must be 1, like nodes, with scheduling.policy Shared",
    ),
    (
        "FineTuneJob",
        "spec.scheduling",
        {"policy": "Shared", "scaleUpFirst": {}},
        "spec.scheduling.scaleUpFirst: * leave it out with policy Shared",
    ),
    ("FineTuneJob", "spec.scheduling.share", "100%", "spec.scheduling.share: * write a share from 1% to 99%"),
    (
        "GPUPool",
        "spec.sharing",
        {"mode": "MPS"},
        "spec.sharing.replicas: * set it when mode is TimeSlicing, MPS or HAMi",
    ),
    (
        "GPUPool",
        "spec.sharing",
        {"replicas": 4},
        "spec.sharing.replicas: * set it when mode is TimeSlicing, MPS or HAMi",
    ),
    ("GPUPool", "spec.sharing.deviceClass", "GPU_1", "spec.sharing.deviceClass: * write the name of a DeviceClass"),
    ("FineTuneJob", "spec.resources.memory", "8GB", "spec.resources.memory: * write a quantity, such as 8Gi"),
    ("FineTuneJob", "spec.resources.memory", "0", "spec.resources.memory: * write at least 64Mi, such as 8Gi"),
    ("FineTuneJob", "spec.resources.memory", "1", "spec.resources.memory: * write at least 64Mi, such as 8Gi"),
    ("InferenceEngine", "spec.resources.memory", "1Ki", "spec.resources.memory: * write at least 64Mi, such as 8Gi"),
    ("FineTuneJob", "spec.resources.nodes", 65, "spec.resources.nodes: * should be less than or equal to 64"),
    ("FineTuneJob", "spec.managedBy", "an other", "spec.managedBy: * write a controller's name with its domain"),
    ("FineTuneJob", "spec.managedBy", "kueue", "spec.managedBy: * write a controller's name with its domain"),
    ("FineTuneJob", "spec.managedBy", "a.b/c\u202ed", "spec.managedBy: * write a controller's name with its domain"),
    (
        "InferenceEngine",
        "spec.serving.gpuMemoryUtilization",
        "0",
        "gpuMemoryUtilization: * write a share of a GPU's memory",
    ),
    (
        "InferenceEngine",
        "spec.serving.gpuMemoryUtilization",
        "1.1",
        "gpuMemoryUtilization: * write a share of a GPU's memory",
    ),
    (
        "InferenceEngine",
        "spec.serving.gpuMemoryUtilization",
        "1e9999999",
        "gpuMemoryUtilization: * write a share of a GPU's memory",
    ),
    ("FineTuneJob", "spec.resources.pool", "H_100", "spec.resources.pool: * write a name of lower-case letters"),
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
    ("dataset: {uri: 'pvc://d/a b.jsonl'}", False),
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
