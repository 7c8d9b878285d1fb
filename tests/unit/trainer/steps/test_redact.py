"""redact: what is found and what is left.

Kinds of public reports: times and dates as telephone numbers (nullclaw 944, posthog-js 4783), numbers of databases and
builds (screenpipe 2340, langwatch 7017, langflow 14934), fractions as cards (redact-pii 39), a bracket that stayed
(presidio-hardened-x402 75), only America's numbers (entireio/cli 1909), and hours in a hostile text
(agent-governance-toolkit 3566, langchain 39593, closeio/sync-engine 47).
"""

import random
import string
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_trainer.data.steps import shapes
from tests.unit.trainer.steps.rows import chat, redacted, step

TOKEN = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=200))
UPPER = "".join(random.Random(2).choices(string.ascii_uppercase + string.digits, k=16))
PEM_BODY = "\n".join([TOKEN[:64]] * 3) + "\nAw=="


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to john.doe+news@mail.example.co.uk.", "Write to [EMAIL]."),
        ("<a@b.example>, \"c@d.example\" (e@f.example)", "<[EMAIL]>, \"[EMAIL]\" ([EMAIL])"),
        ("mailto:a@b.example?subject=x", "mailto:[EMAIL]?subject=x"),
        ("müller@büro.example", "[EMAIL]"),
        ("邮箱是a@b.example请联系", "邮箱是[EMAIL]请联系"),
        ("a@b.example+c@d.example", "[EMAIL]"),
        ("A@B.EXAMPLE", "[EMAIL]"),
        ("@decorator.method, a @ b.example, user@host, react@18.2.0", None),
        ("git clone git@github.example:org/repo.git; icon@2x.png", None),
        ("@user.name said 5@3.5", None),
    ],
)  # fmt: skip
def test_email(text: str, expected: str | None) -> None:
    assert redacted(text) == (text if expected is None else expected)


@pytest.mark.parametrize(
    "number",
    [
        "+14155550182", "+1 415 555 0182", "+1-415-555-0182", "+1 (415) 555-0182", "+49 30 1234567",
        "+49 (0)30 1234567", "+44 20 7946 0958", "+44 (0)20 7946 0958", "+33 1 23 45 67 89",
        "+91 98765 43210", "+86 138 1234 5678",
        "+81 3-1234-5678", "+55 11 91234-5678", "+43 1 58858", "+41 44 668 18 00",
        "415-555-0182", "(415) 555-0182", "(415)555-0182", "415.555.0182", "415 555 0182", "1-800-555-0199",
        "020 7946 0958", "0161 496 0000", "07700 900123", "(020) 7946 0958", "(030) 123456", "0171/1234567",
        "01 23 45 67 89", "01.23.45.67.89", "(02) 9876 5432", "0412 345 678", "03-1234-5678", "090-1234-5678",
        "138 1234 5678", "(11) 91234-5678",
    ],
)  # fmt: skip
def test_phone(number: str) -> None:
    for before, after in (("", ""), ("Call ", "."), ("tel:", ""), ("(", ")"), ("5 or ", " today"), ("phone=", ",")):
        assert redacted(f"{before}{number}{after}") == f"{before}[PHONE]{after}"


@pytest.mark.parametrize("number", ["+1 415 555 0182", "415-555-0182", "020 7946 0958", "+14155550182"])
def test_number_after_a_phone_stays(number: str) -> None:
    assert redacted(f"{number} 24 hours, {number} 12/24") == "[PHONE] 24 hours, [PHONE] 12/24"


@pytest.mark.parametrize(
    "text",
    [
        "Tue 02 20:17:00 CST 2026", "2024-01-15 12:30", "2024-01-15 12", "15.01.2024", "01/02/2024 10:00", "20240115",
        "hosted-eu-20260812-09", "LinkedAccountId: 215805592", "build 2024 1130 0917", "order number 10023456",
        "1.2.3.4", "192.168.100.200", "version 10.202.555.1234", "1.10.200-beta.3000", "port 127.0.0.1:8080",
        "ISBN 978-3-16-148410-0", "ISBN 0-306-40615-2", "ISBN 3161484100", "0.250750683890174", "3.14159265358979",
        "4155550182", "1700000000000", "1,234,567,890", "1 234 567 890", "123-45-6789",
        "12345678-1234-1234-1234-123456789012",
        "123e4567-e89b-12d3-a456-426614174000", "5 + 3 = 8, 5+3-415", "[1, 2, 3, 555, 123, 4567]", "0 1 02 03 04 05 06",
        "01 02 03 04 05 06 07", "UTC+0200", "/415-555-0182/", "a415-555-0182", "10 000 000 000", "10:15-11:45",
        "100-200-3000", "$1,415,555.01", "lines 100-555 0182",
    ],
)  # fmt: skip
def test_number_that_is_no_phone_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4111111111111111", "[CARD]"),
        ("4111 1111 1111 1111", "[CARD]"),
        ("4111-1111-1111-1111, exp. 12/27", "[CARD], exp. 12/27"),
        ("4111 1111 1111 1111 12/27 123", "[CARD] 12/27 123"),
        ("4111 1111 1111 1111 123", "[CARD] 123"),
        ("5 4111.1111.1111.1111", "5 [CARD]"),
        ("5555555555554444 378282246310005 3782 822463 10005", "[CARD] [CARD] [CARD]"),
        ("6011111111111117 3530111333300000 30569309025904", "[CARD] [CARD] [CARD]"),
        ("4222222222222 6304000000000000", "[CARD] [CARD]"),
        ("4111111111111112", None),  # the check digit is wrong
        ("0000000000000000 1234567890123452 9999999999999995", None),  # no scheme begins so
        ("0.4111111111111111 a4111111111111111 4111111111111111a", None),
        ("41111111111111114111111111111111", None),
        ("4111 1111-1111 1111", None),
    ],
)
def test_card(text: str, expected: str | None) -> None:
    assert redacted(text, kinds=["Card"]) == (text if expected is None else expected)


@pytest.mark.parametrize(
    "key",
    [
        f"AKIA{UPPER}", f"ghp_{TOKEN[:36]}", f"github_pat_{TOKEN[:22]}_{TOKEN[:59]}", f"glpat-{TOKEN[:20]}",
        f"sk-{TOKEN[:48]}", f"sk-proj-{TOKEN[:60]}_{TOKEN[:40]}-{TOKEN[:20]}", f"sk-ant-api03-{TOKEN[:93]}",
        f"sk-{'0123456789abcdef' * 2}", f"sk_live_{TOKEN[:24]}", f"hf_{TOKEN[:34]}", f"xoxb-123456789012-{TOKEN[:24]}",
        f"AIza{TOKEN[:35]}", f"npm_{TOKEN[:36]}", f"SG.{TOKEN[:22]}.{TOKEN[:43]}",
        f"eyJ{TOKEN[:20]}.eyJ{TOKEN[:100]}.{TOKEN[:43]}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{PEM_BODY}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{PEM_BODY}\n-----END PRIVATE KEY-----".replace("\n", "\\n"),
        f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A\n\n{PEM_BODY}\n"
        "-----END RSA PRIVATE KEY-----",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{TOKEN[:64]}",
    ],
)  # fmt: skip
def test_key(key: str) -> None:
    assert redacted(f'token = "{key}"') == 'token = "[KEY]"'
    assert redacted(f"{key} ") == "[KEY] "


@pytest.mark.parametrize(
    "text",
    [
        "sk-fading-circle-container-small", "sk-estimator-doc-link-2024-version", "task-force-of-2024-and-many-more",
        "ghp_short", "AKIA", "hf_hub_download", "xoxo-", "the eyJ header", "password = os.environ['PASSWORD']",
        "-----BEGIN PRIVATE KEY----- is how a private key in a PEM file begins",
        "-----BEGIN CERTIFICATE-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END CERTIFICATE-----",
        "d41d8cd98f00b204e9800998ecf8427e",
    ],
)  # fmt: skip
def test_text_that_is_no_key_stays(text: str) -> None:
    assert redacted(text) == text


def test_only_asked_kinds_are_redacted_and_the_placeholder_is_the_users() -> None:
    text = f"a@b.example +14155550182 4111111111111111 hf_{TOKEN[:34]}"
    assert redacted(text) == "[EMAIL] [PHONE] [CARD] [KEY]"
    assert redacted(text, kinds=["Email", "Card"], placeholder="<{kind}>") == text.replace(
        "a@b.example", "<EMAIL>"
    ).replace("4111111111111111", "<CARD>")
    assert redacted("a@b.example", placeholder=r"\1 \g<0>") == r"\1 \g<0>"


def test_calls_of_tools_stay() -> None:
    call = {"type": "function", "function": {"name": "mail", "arguments": {"to": "a@b.example"}}}
    row = chat("Mail a@b.example", "", tool_calls=[call])
    assert step(redact={}).apply(row) == [chat("Mail [EMAIL]", "", tool_calls=[call])]


PARTS = ("a@b.example", "+14155550182", "(415) 555-0182", "415-555-0182", "4111111111111111", "AKIA" + UPPER,
         "01 23 45 67 89", "a", "1", " ", ".", "-", "+", "(", ")", "@", "0", "sk-", "_")  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redacted(text)
    assert redacted(once) == once


HOSTILE = (
    "1.1.1.", "123-45-", "a.", "a@", "a@a.", "a" * 64, "@", "+1 ", "+1(", "(0", "0 ", "0", "1", "4111 ", "4 ",
    "eyJaaaaaaaa.", "eyJ", "sk-", "sk-a-", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "A" * 64 + "\n",
    "-----BEGIN PRIVATE KEY-----" + "A" * 16, "xoxb-", "\\n", "415-555-", "01 ", "a@a.aa", "+12345678",
)  # fmt: skip


@pytest.mark.parametrize(
    "without", [shapes.without_emails, shapes.without_phones, shapes.without_cards, shapes.without_keys]
)
@pytest.mark.parametrize("part", HOSTILE, ids=lambda part: repr(part[:30]))
def test_hostile_text_takes_a_time_that_grows_with_its_length(without: Callable[[str, str], str], part: str) -> None:
    """A quadratic expression would take minutes for what ends here in a moment."""
    text = (part * 400_000)[:400_000]
    began = time.process_time()
    without(text, "[X]")
    assert time.process_time() - began < 20
