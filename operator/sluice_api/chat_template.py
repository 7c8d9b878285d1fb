"""How turns become text, for a model that does not say so itself."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from sluice_api.model import Model
from sluice_api.resource import Rule, rules
from sluice_api.sources import FileUri


class TemplateName(StrEnum):
    """The built-in templates, whose text is in sluice_files.chat_templates."""

    ALPACA = "Alpaca"
    CHAT_ML = "ChatML"
    LLAMA = "Llama"
    MISTRAL = "Mistral"
    PLAIN = "Plain"
    VICUNA = "Vicuna"


class ChatTemplate(Model):
    """A chat template: exactly one of these fields."""

    name: TemplateName | None = Field(
        None,
        description="A built-in one: Alpaca (### Instruction), ChatML (<|im_start|>), Llama (Llama 3's headers), "
        "Mistral ([INST]), Plain (the turns' texts with an empty line between), Vicuna (USER: and ASSISTANT:).",
    )
    uri: FileUri | None = Field(None, description="A file with a Jinja template.")
    inline: Annotated[str, StringConstraints(min_length=1, max_length=12_288)] | None = Field(
        None, description="The text of a Jinja template."
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "[has(self.name), has(self.uri), has(self.inline)].filter(x, x).size() == 1",
                "write one of name, uri and inline",
            )
        )
    )
