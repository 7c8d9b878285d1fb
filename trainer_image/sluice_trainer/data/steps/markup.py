"""Takes HTML out of a text, and nothing else that has angle brackets: formulas, generics and tags such as <think> stay.

Python's own html.parser is quadratic in hostile texts, and takes "a <b and c> d" for a tag. Each expression here reads
a character a bounded number of times: a tag ends at the next angle bracket, and all repeats are possessive.
"""

import html
import re
from bisect import bisect_left
from collections.abc import Iterator

_INLINE = re.compile(
    "a|abbr|acronym|applet|area|audio|b|base|basefont|bdi|bdo|big|button|canvas|cite|code|col|colgroup|data|"
    "datalist|del|dfn|em|embed|font|frame|i|iframe|img|input|ins|kbd|label|link|map|mark|meta|meter|noscript|"
    "object|optgroup|option|output|param|picture|progress|q|rp|rt|ruby|s|samp|script|select|slot|small|source|"
    "span|strike|strong|style|sub|sup|svg|template|textarea|time|title|track|tt|u|var|video|wbr",
    re.IGNORECASE,
)
_BLOCK = re.compile(
    "address|article|aside|blockquote|body|br|caption|center|dd|details|dialog|dir|div|dl|dt|fieldset|figcaption|"
    "figure|footer|form|frameset|h1|h2|h3|h4|h5|h6|head|header|hgroup|hr|html|legend|li|main|menu|nav|noframes|"
    "ol|p|pre|search|section|summary|table|tbody|tfoot|thead|tr|ul",
    re.IGNORECASE,
)
"""Elements that begin a new line."""
_CELL = re.compile("td|th", re.IGNORECASE)
_WITH_CONTENT = frozenset({"script", "style"})
"""Elements that go with what is in them."""
_FLAGS = (
    "allowfullscreen|async|autofocus|autoplay|checked|compact|controls|default|defer|disabled|hidden|inert|ismap|"
    "itemscope|loop|multiple|muted|nomodule|noshade|novalidate|nowrap|open|readonly|required|reversed|selected"
)
_ATTRIBUTES = re.compile(
    rf"""(?:\s++(?:[a-z_:@][\w:.@-]*+\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'=<>`]++)|(?:{_FLAGS})(?![\w-])))*\s*+/?+\s*+""",
    re.IGNORECASE,
)
_MARK = re.compile(
    r"(?P<code>`[^`\n]{1,200}+`)"
    r"|(?P<comment><!--)"
    r"|<(?P<end>/?)(?P<name>[A-Za-z][A-Za-z0-9]{0,15}+)(?P<attributes>(?:[\s/][^<>]*+)?)>"
    r"|(?P<declaration><(?:!DOCTYPE|\?xml)\b[^<>]*+>)"
    r"|(?P<entity>&(?:\#[0-9]{1,7}|\#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});)"
)
_FENCE = re.compile(r" {0,3}(`{3,}+)([^`]*+)")


def without_markup(text: str) -> str:
    """The text without tags, comments, scripts and styles, and with characters for entities.

    Code in ``` fences and in single backticks stays as it is. What begins a new line in a browser begins one here.
    """
    if "<" not in text and "&" not in text:
        return text
    return "\n".join(part if is_code else "".join(_kept(part)) for is_code, part in _fenced(text))


def _fenced(text: str) -> Iterator[tuple[bool, str]]:
    """The text in parts of whole lines, and whether each is a fenced block. One that is not closed goes to the end."""
    fence, lines = "", list[str]()
    for line in text.split("\n"):
        found = _FENCE.fullmatch(line)
        if not fence and found:
            if lines:
                yield False, "\n".join(lines)
            fence, lines = found[1], [line]
        elif fence and found and len(found[1]) >= len(fence) and not found[2].strip():
            yield True, "\n".join([*lines, line])
            fence, lines = "", []
        else:
            lines.append(line)
    if lines:
        yield bool(fence), "\n".join(lines)


def _kept(text: str) -> Iterator[str]:
    """What stays of a text without fences."""
    ends = {"--": [match.end() for match in re.finditer("-->", text)]} | {
        name: [match.end() for match in re.finditer(rf"</{name}\s{{0,9}}+>", text, re.IGNORECASE)]
        for name in _WITH_CONTENT
    }
    at = 0
    while (mark := _MARK.search(text, at)) is not None:
        yield text[at : mark.start()]
        at = mark.end()
        if mark["comment"]:
            at = _next(ends["--"], at) or at
            yield "" if at > mark.end() else mark[0]
        elif mark["entity"]:
            yield html.unescape(mark[0])
        elif mark["code"]:
            yield mark[0]
        elif mark["name"] and _is_tag(mark):
            name = mark["name"]
            if name.lower() in _WITH_CONTENT and not mark["end"]:
                at = _next(ends[name.lower()], at) or at
            yield "\n" if _BLOCK.fullmatch(name) else " " if _CELL.fullmatch(name) and not mark["end"] else ""
        elif mark["name"]:
            yield mark[0]
    yield text[at:]


def _next(places: list[int], at: int) -> int | None:
    """The first of some sorted places that is not before another."""
    index = bisect_left(places, at)
    return places[index] if index < len(places) else None


def _is_tag(mark: re.Match[str]) -> bool:
    if not any(names.fullmatch(mark["name"]) for names in (_INLINE, _BLOCK, _CELL)):
        return False
    return _ATTRIBUTES.fullmatch(mark["attributes"]) is not None and (not mark["end"] or not mark["attributes"].strip())
