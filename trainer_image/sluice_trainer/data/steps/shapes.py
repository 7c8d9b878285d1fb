"""The shapes of what is personal or secret: addresses, telephone numbers, cards and keys.

A hostile row can be 32 MB, so each expression reads a character a bounded number of times: it begins only where a word
does, and each of its repeats either has a small bound or is possessive and can't begin again inside what it has read.
Only single characters are repeated so: Python 3.11 mistakes possessive repeats of groups (python/cpython 106052).
"""

import re

_LETTER = "A-Za-zÀ-ÖØ-öø-ɏ"
"""Latin letters. Those of other scripts stand beside an address without a space, in Chinese for example."""
_EMAIL = re.compile(
    rf"(?<![{_LETTER}0-9._%+-])(?:(?!git@)[{_LETTER}0-9._%+-]{{1,64}}+@(?!\d+x\.)"
    rf"(?:[{_LETTER}0-9-]{{1,63}}+\.){{1,8}}[A-Za-z]{{2,24}}(?![{_LETTER}0-9-]))+"
)
"""Neither git@host:path nor image@2x.png. Several without anything between them are one."""

_PHONE = re.compile(
    r"(?<![\w.+/-])(?:(?:"
    r"\+1[ .-]?(?:\([2-9]\d\d\)|[2-9]\d\d)[ .-]?\d{3}[ .-]?\d{4}"
    r"|\+[1-9]\d{7,14}"  # E.164
    r"|\+[1-9]\d{0,2}(?:[ .-]?\(0\))?(?:[ ./-]?\(\d{1,4}\)|[ ./-]?\d{1,4}){1,2}(?:[ ./-]?\d{2,8}){1,4}"
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}"  # North America
    r"|(?<!\d )0[1-9](?P<french>[ .-])\d\d(?:(?P=french)\d\d){3}(?! \d)"
    r"|\(0\d{1,4}\)[ /-]?\d{3,8}(?:[ -]\d{2,4}){0,2}"
    r"|0[1-9]\d{0,3}[ /-]\d{3,4}[ -]\d{3,4}|0[1-9]\d{1,3}[ /-]\d{6,8}"
    r"|1[3-9]\d(?P<chinese>[ -])\d{4}(?P=chinese)\d{4}"
    r"|\([1-9]\d\) 9?\d{4}-\d{4}"  # Brazil
    r")(?![\w])(?![.:/-]\d))+"
)
"""Without a country code: numbers in groups, of North America, with a leading 0, of China and of Brazil."""
_PHONE_DIGITS = range(8, 16)

_CARD = re.compile(
    r"(?<![\w.+-])(?:\d{13,19}|\d{4}(?P<four>[ .-])(?:\d{4}(?P=four)){2}\d{1,4}(?P<more>(?P=four)\d{1,3}(?!\d))?"
    r"|3\d{3}(?P<six>[ .-])\d{6}(?P=six)\d{4,5})(?!\w)(?![.-]\d)"
)
_CARD_LENGTHS = (
    (re.compile(r"4"), (13, 16, 19)),  # Visa
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"30[0-5]|3095|3[689]"), (14, 16, 19)),  # Diners Club
    (re.compile(r"35(?:2[89]|[3-8])"), (16, 17, 18, 19)),  # JCB
    (re.compile(r"6011|64[4-9]|65|62|81|60|2200|2201|2202|2203|2204"), (16, 17, 18, 19)),  # Discover, UnionPay, ...
    (re.compile(r"50|5[6-9]|6[0-9]"), (13, 14, 15, 16, 17, 18, 19)),  # Maestro
)
"""How the numbers of each scheme begin, and how long they are."""

_BASE64, _ESCAPED = r"[A-Za-z0-9+/=]", r"(?:\s|\\n|\\r)"
_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:\s{1,4}Proc-Type:[^\n]{1,80}+\s{1,4}DEK-Info:[^\n]{1,120}+)?"
    rf"(?:{_ESCAPED}{{1,4}}{_BASE64}{{16,}}+)+"
    rf"(?:(?:{_ESCAPED}{{1,4}}{_BASE64}{{1,15}}+)?{_ESCAPED}{{0,4}}"
    r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
    r"|(?<![\w-])(?:"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[\w-]{20,64}"
    r"|sk-(?:[a-z0-9]{2,12}-){0,3}[\w-]{20,255}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,255}"  # OpenAI, Anthropic; Stripe
    r"|hf_[A-Za-z0-9]{30,64}|xox[abeoprs]-[A-Za-z0-9-]{10,255}|AIza[\w-]{35}|npm_[A-Za-z0-9]{36}"
    r"|SG\.[\w-]{22}\.[\w-]{43}"  # SendGrid
    r"|eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]{8,}+"  # JSON Web Token
    r")(?![\w-])"
)
_RANDOM = re.compile(r"[A-Za-z0-9]{16}")
"""What sk- is followed by in a key, and not in the name of a style sheet's class."""


def without_emails(text: str, placeholder: str) -> str:
    """The text with a placeholder for each e-mail address."""
    return _EMAIL.sub(lambda _: placeholder, text) if "@" in text else text


def without_phones(text: str, placeholder: str) -> str:
    """The text with a placeholder for each telephone number with a country code or of a usual grouping."""

    def put(match: re.Match[str]) -> str:
        return placeholder if sum(map(str.isdigit, match[0])) in _PHONE_DIGITS else match[0]

    return _PHONE.sub(put, text)


def without_cards(text: str, placeholder: str) -> str:
    """The text with a placeholder for each number of a payment card whose scheme, length and check digit are right."""

    def put(match: re.Match[str]) -> str:
        whole, more = match[0], match["more"] or ""
        if _is_card(whole):
            return placeholder
        return placeholder + more if more and _is_card(whole.removesuffix(more)) else whole

    return _CARD.sub(put, text)


def without_keys(text: str, placeholder: str) -> str:
    """The text with a placeholder for each key, token and private key of a known shape."""

    def put(match: re.Match[str]) -> str:
        words = match[0].startswith("sk-") and not any(
            any(map(str.isdigit, run[0])) for run in _RANDOM.finditer(match[0], 3)
        )
        return match[0] if words else placeholder

    return _KEY.sub(put, text)


def _is_card(number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    fits = any(begin.match(digits) and len(digits) in lengths for begin, lengths in _CARD_LENGTHS)
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return fits and (sum(map(int, digits[-1::-2])) + sum(each // 10 + each % 10 for each in doubled)) % 10 == 0
