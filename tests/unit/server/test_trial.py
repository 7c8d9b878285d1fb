"""What an adapter brings of programs, tried out with limits: a bomb is a refusal, and what people use passes."""

import pytest

from sluice_api.chat_template import TemplateName
from sluice_files.chat_templates import builtin
from sluice_server.agent import trial
from sluice_server.agent.trial import fault_of_patterns, fault_of_template

SLOW, LARGE = "takes more than 2 seconds of a CPU", "takes more than 128 MiB of memory"
LOOP = "{% for a in range(9999) %}"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CPU_SECONDS", 2)


@pytest.mark.parametrize("name", [TemplateName.LLAMA, TemplateName.MISTRAL])
def test_built_in_template_passes(name: TemplateName) -> None:
    assert fault_of_template(builtin(name)) is None


def test_template_that_refuses_a_conversation_passes() -> None:
    assert fault_of_template("{{ raise_exception('roles must alternate') }}") is None
    assert fault_of_template("{{ messages[7].content + nothing.at.all }}") is None


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (f"{LOOP * 4}{{% endfor %}}{{% endfor %}}{{% endfor %}}{{% endfor %}}", SLOW),
        ("{{ 9**(9**9) }}", SLOW),  # folded while it is compiled
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(64) }}", SLOW),
        ("{{ 'a' * 9**10 }}", LARGE),
        ("{% set n = namespace(x='aaaaaaaa') %}{% for a in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}", LARGE),
        ("{{ 'a' * 2**21 }}", "makes 2,097,152 characters of a short conversation"),
        ("{% if messages | length > 30 %}{{ 'a'.ljust(9**10) }}{% endif %}", LARGE),
        ("{% if tools %}{{ 'a'.ljust(9**10) }}{% endif %}", LARGE),
        ("one\n{% for %}", "is not Jinja: line 2: Expected an expression, got 'end of statement block'"),
    ],
)
def test_template_that_would_stop_an_engine_has_a_fault(template: str, fault: str) -> None:
    assert fault_of_template(template) == fault


def test_template_cannot_leave_its_sandbox() -> None:
    assert fault_of_template("{{ messages.__class__.__mro__[1].__subclasses__() | string | length * 10**7 }}") is None


def test_patterns_that_name_layers_pass() -> None:
    patterns = ["q_proj", "model.layers.0.self_attn.k_proj", r".*\.layers\.[0-3]\..*", "^layers.(0|1).q_proj"]
    assert fault_of_patterns(patterns, [f"model.layers.{n}.self_attn.q_proj" for n in range(100)]) is None
    assert fault_of_patterns([], ["a"]) is None


@pytest.mark.parametrize(
    ("pattern", "layer", "fault"),
    [
        ("(?:(a|aa)+)+", "a" * 60 + "b", SLOW),
        ("(a", "model.a", "has '(a', which is no regular expression: missing ) at position"),
    ],
)
def test_pattern_that_would_stop_an_engine_has_a_fault(pattern: str, layer: str, fault: str) -> None:
    assert str(fault_of_patterns(["fits", pattern], [layer])).startswith(fault)


def test_trial_that_breaks_is_no_fault_of_the_adapter() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)the trial of an adapter's nothing ended with 1: .*KeyError"):
        trial._try("nothing", {})
