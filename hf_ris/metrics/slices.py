"""What an expression says, as pure functions of its text: location words, ordinals, negation, motion, length.

English word lists made for the wording of RefCOCO, RefCOCO+, RefCOCOg and RefScenes. They go by words, not by meaning:
the "red top" of a woman counts as a location, the "back" she turns as well.
"""

import re


def _words(*alternatives: str) -> re.Pattern:
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b")


_NUMBER = r"(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten)"
_SIDE = r"(?:left|right|top|bottom|front|back|end|side)"
# Words whose place sense is rare: a tank top, a second baseman, number 15 on a shirt.
_CLOTHES = re.compile(r"\b(?:tank|crop|halter|tube) tops?\b")
_BASEBALL = re.compile(r"\b(?:first|second|third|1st|2nd|3rd) base(?:man|men)?\b")

_LOCATION = _words(
    r"(?:left|right|top|bottom|upper|lower|front|rear|back|inner|outer|fore)(?:er|est|most)?",
    r"(?:left|right)\s?hand|lft|righ?th?|leftie?st|topmost|uppermost|lowermost",
    r"north\w*|south\w*|east(?:ern\w*)?|west(?:ern\w*)?",
    r"middle|mid|center|centre|centered|central",
    r"corners?|edges?|sides?|border|(?:at|on|by|near)(?: the)?(?: \w+)? end",
    r"in ?front|up ?front|behind|background|backmost|foreground|forefront|distance|distant",
    r"above|over (?:the|an?)|below|under|underneath|beneath|(?:high|low)(?:er|est)",
    r"(?:be)?sides?|next to|nearby|near(?:er|est)?|close(?:r|st)?|far(?:ther|thest|est)?|further|furthest",
    r"between|in ?between|among|amongst|across|opposite|adjacent|alongside|around|surrounded",
    r"inside|outside|row|column|o ?'? ?clock",
)
_ORDINAL = _words(
    r"first|second|third|fourth|forth|fifth|sixth|seventh|eighth|ninth|tenth|last|\d+(?:st|nd|rd|th)",
    rf"{_NUMBER}(?: \w+)? (?:in |over )?from (?:the )?(?:far )?{_SIDE}",
    r"number (?:one|two|three|four|five|six|seven|eight|nine|ten)",
)
_NEGATION = _words(
    r"no|not|non|none|nothing|nobody|never|neither|nor|without|cannot|lacks|lacking",
    r"(?:is|are|was|were|do|does|did|has|have|had|ca|could|wo|would|should|ai)n(?: ?' ?)?t",
    r"(?:except|excluding|other than|rather than|instead of)",
)

_RELATION = re.compile(
    r"\b(?:(?:left|right|front|top|side) of|above|over|below|under|underneath|beneath|besides?|next to|behind"
    r"|between|near|(?:clos|near)(?:er|est) to|on top of|in front of) "
    r"(?!(?:the |an? )?(?:(?:left|right|top|bottom|middle|center) (?:of )?)?(?:the |an? )?"
    r"(?:picture|image|photo|frame|scene|screen|left|right|top|bottom|middle|center|edge|corner)\b)"
)

# What is seen in several frames only: verbs in the third person or in -ing, and words of speed, path and rest.
_VERBS = (
    "mov|walk|runn|jump|driv|rid|fly|swimm|turn|spinn|rotat|roll|fall|ris|climb|enter|leav|com|go|stopp|start|bounc|"
    "slid|glid|cross|pass|chas|follow|approach|accelerat|danc|swing|drift|float|crawl|hopp|dash|circl"
)
_MOTION = _words(
    rf"(?:{_VERBS})ing",
    r"(?:moves?|walks?|runs|jumps?|drives?|rides|flies|swims?|turns?|spins?|rotates?|rolls?|falls?|rises|climbs?|enters?"
    r"|leaves|comes|goes|stops?|starts?|bounces?|slides?|glides?|crosses|passes|chases|follows|approaches|drifts?"
    r"|floats|crawls|hops|dashes|circles|stands?|stays?)",
    r"(?:fast|slow|quick)(?:er|est|ly)?|(?:un)?moving|motionless|stationary|standing still|stand still",
    r"towards|clockwise|anticlockwise|counterclockwise",
)


KINDS = ("ordinal", "proximity", "relation", "negation", "location", "look")


def has_location_word(text: str) -> bool:
    """Whether `text` says where: in the image ("left", "top"), in depth or relative to another thing ("next to")."""
    return _LOCATION.search(_CLOTHES.sub(" ", text.lower())) is not None


def has_ordinal(text: str) -> bool:
    """Whether `text` counts to its target: "second", "3rd", "last", "two from the left", "number three"."""
    return _ORDINAL.search(_BASEBALL.sub(" ", text.lower())) is not None


def has_negation(text: str) -> bool:
    """Whether `text` says what is not so: "not", "no", "without", "isn't", "except", "other than"."""
    text = text.lower().replace("\u2019", "'").replace("w/o", "without")
    return _NEGATION.search(text) is not None


def has_relation(text: str) -> bool:
    """Whether `text` places its target by another thing: "above the cup", "left of a star", not "of the picture"."""
    return _RELATION.search(text.lower()) is not None


def has_proximity(text: str) -> bool:
    """Whether such a relation is one of distance: "next to", "beside", "near", "closest to".

    Of the others most are true of whichever of the things named lies furthest left (right, above, below), so that one
    can do without the second thing; of what is next to it nothing is known until that is found.
    """
    found = (match[0] for match in _RELATION.finditer(text.lower()))
    return any(relation.startswith(("beside", "next", "near", "clos")) for relation in found)


def expression_kind(text: str) -> str:
    """The first of `KINDS` that `text` is; "look" is what is none of the others, and "relation" no proximity."""
    says = has_ordinal, has_proximity, has_relation, has_negation, has_location_word
    return next((kind for kind, of_kind in zip(KINDS, says) if of_kind(text)), KINDS[-1])


def word_count(text: str) -> int:
    """Length of an expression in words, parted by white space."""
    return len(text.split())


def distractor_group(same_class_distractors: int) -> str:
    """The group "0", "1-2" or "3+" of a number of other objects of the target's class in the image."""
    if same_class_distractors < 0:
        raise ValueError(f"same_class_distractors is {same_class_distractors}, but a count is 0 or more")
    return "0" if same_class_distractors == 0 else "1-2" if same_class_distractors < 3 else "3+"


def has_motion(text: str) -> bool:
    """Whether the text says how something moves or that it does not, as `a dog running to the left`."""
    return _MOTION.search(text.lower()) is not None
