"""How answers begin that refuse, in the public sets that models made: OpenOrca, UltraChat, ShareGPT and others."""

import re

_CANT = (
    r"(?:can ?no?t|can'?t|could ?n[o']t|won'?t|will not|(?:am|'m) (?:not able|unable|not (?:allowed|permitted|"
    r"programmed|designed|capable))|don'?t feel comfortable|do not feel comfortable|(?:am|'m) not comfortable|"
    r"must (?:respectfully |politely )?decline|have to decline)\b"
)
_NOT = rf"(?:{_CANT}|do(?:n'?t| not) (?:have|possess|hold|express)|have no|am not|'m not)"
_HELP = (
    r"(?:help(?! (?:but|\w+ing)\b)|assist|provide|fulfill?|comply|create|generate|write|answer|engage|support|"
    r"discuss|share|participate|continue with|do that|produce|offer|give(?! up)|respond|complete|"
    r"access|browse|process|perform)\b"
)
_SORRY = r"(?:(?:i'?m|i am|we'?re|we are) )?(?:(?:very|really|so|truly|terribly|deeply) )?sorry"
_APOLOGY = rf"(?:{_SORRY}|i (?:do )?apologi[sz]e|(?:my |please accept my )?(?:sincere )?apologies)"
_OPENINGS = (
    rf"{_APOLOGY}(?: for (?:the|any) (?:inconvenience|confusion))?(?:,| -|\.|;)? (?:but )?(?:as an? [^,.]{{2,60}}, )?"
    rf"i ?{_CANT}",
    rf"(?:unfortunately|regrettably|sadly),? (?:as an? [^,.]{{2,60}}, )?i ?{_CANT}",
    rf"(?:{_APOLOGY},? but )?as an? (?:ai|artificial intelligence|(?:large )?language model|assistant)\b[^,.]{{0,40}}, "
    rf"i ?{_NOT}",
    rf"i(?: simply| just)? ?(?:can ?not|can'?t|won'?t|will not) (?:be able to )?(?:\w+ly )?{_HELP}",
    rf"i ?(?:am|'m) (?:not able|unable|not programmed|not designed) to (?:\w+ly )?{_HELP}",
    r"i must (?:respectfully |politely )?decline\b",
    r"i (?:do not|don'?t) feel comfortable\b",
    r"(?:很)?(?:抱歉|对不起|對不起)[，,]?\s?(?:但|但是)?我(?:无法|不能|無法)",
    r"(?:es )?tut mir (?:sehr )?leid, (?:aber )?(?:ich kann|das kann ich|als)\b[^.!?]{0,80}\b(?:nicht|kein)",
    r"(?:je suis )?(?:vraiment )?désolée?, (?:mais )?je ne (?:peux|suis) pas",
    r"lo siento(?: mucho)?, (?:pero )?no puedo",
)
_REFUSAL = re.compile("|".join(f"(?:{opening})" for opening in _OPENINGS))
_APOSTROPHES = str.maketrans("’‘ʼ`´", "'" * 5)
_LOOKED_AT = 300
"""Characters at an answer's beginning."""


def is_refusal(answer: str) -> bool:
    """Whether an answer begins as a refusal does, in either case, with any apostrophe, quoted or in bold."""
    begins = answer.lstrip(" \t\r\n\"'“”*_>-")[:_LOOKED_AT].casefold().translate(_APOSTROPHES)
    return _REFUSAL.match(" ".join(begins.split())) is not None
