"""Adapter: a public name on an engine, and the adapter bytes behind it."""

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, NonNegativeInt, StringConstraints

from sluice_api.conditions import Condition
from sluice_api.model import Message, Model, Name, Remedy, Text
from sluice_api.reports import LoadedState
from sluice_api.resource import DNS_LABEL_NAME, Column, Kind, Resource, Rule, rules
from sluice_api.sources import AdapterUri

Digest = Annotated[
    str,
    StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71),
    Remedy("write sha256: and 64 hexadecimal digits, as status.result.digest of a FineTuneJob shows it"),
]


class AdapterSource(Model):
    """The bytes."""

    uri: AdapterUri = Field(
        description="pvc://claim/path, s3://bucket/path (gs:// and az:// too) or hf://org/name@revision of a folder "
        "with adapter_config.json and adapter_model.safetensors. A claim must be one of the engine's "
        "lora.volumeClaims; what opens another address is one of its lora.credentials."
    )
    digest: Digest | None = Field(
        None,
        description="Bytes with another digest are refused. It is the sha256 over the two files, as the export's "
        "manifest says. Absent: whatever is there when it is loaded.",
    )


class AdapterSpec(Model):
    """A public name on an engine, and the bytes behind it."""

    engine: Name = Field(description="An InferenceEngine in this namespace.")
    source: AdapterSource = Field(description="The bytes. To roll back, write the earlier source again.")

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.engine == oldSelf.engine",
                "cannot be changed: create another Adapter for that engine",
                at=".engine",
            )
        )
    )


class AdapterReplica(Model):
    """The adapter on one replica of the engine."""

    slot: NonNegativeInt = Field(description="Index of the replica.")
    state: LoadedState = Field(description="Loading, Loaded or Failed.")
    version: Text = Field("", description="Name inside vLLM, <name>--<sha12>.")
    reason: Text = Field("", description="Why it failed, a word from docs/reasons.md.")
    message: Message = Field("", description="Why, for a person.")


class AdapterStatus(Model):
    """Where the adapter answers. Nothing that decides lives only here."""

    observed_generation: NonNegativeInt = Field(0, description="Generation of the spec that this status describes.")
    conditions: tuple[Condition, ...] = Field(
        (), max_length=8, description="Ready: every ready replica answers with the adapter."
    )
    version: Text = Field("", description="The version that all ready replicas have.")
    loaded: Text = Field("", description="Replicas that have the adapter, and replicas that are ready: 2/2.")
    replicas: tuple[AdapterReplica, ...] = Field((), max_length=1000, description="Each replica of the engine.")


class Adapter(Resource):
    """A fine-tuned adapter with a public name, live on an engine. It survives the job that made it."""

    KIND: ClassVar[Kind] = Kind(
        kind="Adapter",
        plural="adapters",
        short_names=("ad",),
        columns=(
            Column("Engine", ".spec.engine"),
            Column("Version", ".status.version"),
            Column("Loaded", ".status.loaded"),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].reason'),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )

    spec: AdapterSpec
    status: AdapterStatus = Field(default_factory=AdapterStatus)

    model_config = ConfigDict(
        json_schema_extra=rules(
            DNS_LABEL_NAME,
            Rule(
                "!self.metadata.name.contains('--')",
                "metadata.name: write a single '-' where '--' is: versions of an adapter are named <name>--<digest>",
            ),
            Rule(
                "self.metadata.name != self.spec.engine",
                "metadata.name: write another name than the engine's, by which clients ask for the base model",
            ),
        )
    )
