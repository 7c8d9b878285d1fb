"""Where the result of a FineTuneJob is served."""

from pydantic import ConfigDict, Field

from sluice_api.model import Model, Name
from sluice_api.resource import Rule, rules


class Publish(Model):
    """The engine that serves the result."""

    engine: Name = Field(description="An InferenceEngine in this namespace, with the same base model.")
    name: Name = Field(description="The public name: the `model` of a chat request. Writes Adapter/<name>.")
    replace: bool = Field(
        False,
        description="True: an Adapter of that name is replaced even if another job, or a person, has made it. False: "
        "only an Adapter that a job of this name has written is replaced, also if that was an earlier job. For any "
        "other the job says NameTaken and waits. It can be changed at any time.",
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!self.name.contains('--')",
                "write a single '-' where '--' is: versions of an adapter are named <name>--<digest>",
                at=".name",
            ),
            Rule(
                "self.name != self.engine",
                "write another name than the engine's, by which clients ask for the base model",
                at=".name",
            ),
        )
    )
