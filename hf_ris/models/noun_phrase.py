"""The main noun phrase of a referring expression: what it speaks of, without where it is and what is around it.

    >>> noun_phrase("the man in the red coat on the left")
    'man'
    >>> noun_phrase("second brown teddy bear from the right")
    'brown teddy bear'

`noun_phrase` parses with spaCy where one of its English models is installed, and else by the rules of this file, which
need nothing but Python. Either way the phrase is a noun with what stands before it, without articles, numbers and words
of place; of an expression that names nothing ("far left", "3rd from right") it is the expression itself.

The rules go by word lists and endings made for the telegraphic English of RefCOCO, RefCOCO+, RefCOCOg and RefScenes
("guy blue shirt bottom left"). A word that no list knows is taken for a noun, so the lists hold what ends a phrase.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal


SPACY_MODELS = ("en_core_web_sm", "en_core_web_md", "en_core_web_lg", "en_core_web_trf")  # the first one installed

_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|w/o?|[^\w\s]")
_HYPHEN = re.compile(r"\s+-\s+")
_POSSESSIVE = re.compile(r"\s+'\s*s\b")
_OCLOCK = re.compile(r"\bo(?: ?'\s?| )clock\b")


_SKIPPED = frozenset(
    "a an the this that these those some any all both each every another other others same such no not just only also "
    "my your his her its their our i you he she it we they me him them us there here what whatever find click look "
    "see pick select choose please sorry lol haha um ok okay yes number num whole entire very really so most more "
    "less least quite almost mostly partially partly fully completely kind sort type".split()
)
_PLACES = frozenset(
    "left right lefter righter leftest rightest leftmost rightmost l r lft rt rgt lef rigth righ letf lefthand "
    "righthand leftie center centre centered central middle mid midle top bottom upper lower topmost bottommost "
    "uppermost lowermost front frontmost frontest back backmost rear far farther further farthest furthest furtherest "
    "near nearer nearest close closer closest foreground background forefront corner side sides edge end inner outer "
    "way away up down forward forwards backward backwards sideways upright upside ahead alone together apart north "
    "south east west first second third fourth fifth sixth seventh eighth ninth tenth last next one-to-last oclock "
    "o'clock clock-wise pm am distance row column rightside leftside inside outside outermost innermost lowest "
    "highest directly slightly barely closely front-most left-most right-most".split()
)
_NUMBERS = frozenset("two three four five six seven eight nine ten eleven twelve dozen single".split())
# What ends a phrase once it has a noun: prepositions, conjunctions, relative words, verbs that no ending tells.
_ENDS = frozenset(
    "of in on at by with w w/ w/o wo without to from for near nearby behind beside besides under underneath beneath "
    "below above over into onto off out against across along around through between inbetween in-between among "
    "amongst toward towards next-to beyond past via like than as per about after before during upon within atop amid "
    "opposite and or but n nor while whilst when where who whom whose which that thats whos wich because if though "
    "then is are was were be been being am isnt arent wasnt aint s has have had having hasnt does do did doesnt dont "
    "can cant cannot could will would should might may must get gets got getting goes went looks looked seems appears "
    "shows shown showing holds held wears worn wear wore sits sat sit stands stood stand lays laid lies lay leans "
    "bends bent faces walks rides runs eats ate eaten drinks plays throws thrown hits swings touches reaches points "
    "smiles watches reads kneels sleeps sleeping made make makes seen taken takes took given written cut cutoff "
    "hidden broken stuck lit built kept set put hung closest seated dressed parked almost aside maybe probably "
    "with-in partialy visible shirtless barefoot yet still too again already also where's that's who's it's".split()
)
_NOUNS_TOO = frozenset("male female adult blond blonde brunette orange".split())
# Before the first noun, these say where the thing is and not what: "by the wall", "looking at us", "holding a bat".
_RELATIONS = frozenset(
    "on at by near behind beside besides under underneath beneath below above over against across along around "
    "between inbetween toward towards to looking facing touching holding carrying riding eating drinking using "
    "watching reading wearing cutting throwing hitting pulling pushing feeding having getting taking making playing "
    "hugging kissing".split()
)
_ADJECTIVES = frozenset(
    "red blue green yellow white black brown gray grey pink purple orange tan beige teal maroon navy gold golden "
    "silver violet turquoise khaki blond blonde brunette blk wht blu purp grn dark darker darkest light lighter "
    "lightest bright pale reddish bluish greenish yellowish brownish colorful big bigger biggest small smaller "
    "smallest large larger largest tall taller tallest short shorter shortest long longer longest little tiny huge "
    "giant wide narrow thin thick thinner thicker fat skinny old older oldest young younger youngest new bald balding "
    "naked nude bare shirtless blurry blurred fuzzy clear full empty open closed half-full partial main striped "
    "stripped plaid checkered checked floral spotted plain solid wooden furry fluffy shiny messy clean dirty wet dry "
    "curly straight round square rectangular oval curved flat hot cold asian african american caucasian female male "
    "adult beautiful pretty cute ugly weird funny sad happy angry good best better bad worst different similar single "
    "double multi multicolored multi-colored light-colored dark-colored skinnier fatter obvious "
    "visible high low deep polka greenest reddest whitest blackest brownest roundest curliest fluffiest leafy bumpy "
    "spotty sweaty fuzzier grassy sandy rusty muddy snowy wavy lacy stripy stripey chubby hairy scruffy slim "
    "bright-colored brighter brightest".split()
)
_PEOPLE = frozenset(
    "man woman men women guy guys dude dudes girl girls boy boys lady ladies person persons people kid kids child gal "
    "chick gentleman adult male female player batter catcher umpire ump pitcher skier skiier snowboarder skateboarder "
    "skater surfer rider biker cyclist bicyclist driver chef cook officer cop policeman fireman worker waiter "
    "waitress bride groom mom mother dad father grandma grandpa son daughter brother sister teenager teen toddler "
    "spectator fan referee ref coach student soldier businessman hitter runner swimmer baker someone somebody "
    "anyone".split()
)
_OWNERS = frozenset(
    "mans womans guys girls boys ladys kids persons mens womens babys childs catchers batters players".split()
)
# Ending like a verb without being one.
_NOUNS_IN_ING = frozenset(
    "thing something anything nothing everything building painting drawing wedding ring earring king string wing "
    "clothing ceiling awning icing frosting stuffing topping pudding dressing lighting railing landing sling swing "
    "spring bling viking evening morning living dining parking serving shopping frying cooking rolling washing baking "
    "rocking folding mixing fishing sewing chopping racing boxing filling siding wrapping packaging crossing covering "
    "bedding herring duckling dumpling seasoning opening marking being toping lining stocking sibling outing".split()
)
_NOUNS_IN_ED = frozenset("bed beds sled shed seed weed reed speed moped tweed steed bedspread".split())
# "of" after these leads on to what is meant: the back of the chair, one of the dogs; the rest stop at "of" or, being
# measures, keep what follows: slice of pizza.
_PARTS = frozenset(
    "part parts half portion section end edge corner side top bottom back front rear middle center centre rest tip "
    "picture photo pic image view one ones all most both some other left right either any each two three "
    "four couple lot lots kind type sort closest nearest biggest smallest largest tallest darker lighter "
    "larger smaller bigger taller shorter".split()
)
_MEASURES = frozenset(
    "piece pieces slice slices bunch bunches bowl bowls cup cups glass glasses plate plates bottle bottles pair group "
    "herd stack pile row basket box can jar pot pan mug slab chunk chunks bit bite loaf carton bag bags pitcher tray "
    "dish pack package stalk stem head heads floret florets clump bouquet vase container set flock team crowd line "
    "scoop spoonful ball balls roll sheet block wedge serving order tub pint crate case side-dish batch cluster".split()
)
_KEPT_AFTER_PERSON = _PEOPLE | frozenset("scout model rider cub".split())


def noun_phrase(text: str, method: Literal["auto", "spacy", "rules"] = "auto") -> str:
    """The main noun phrase of `text`, in lower case.

    Args:
        method: `spacy`, `rules`, or `auto`: spaCy where one of `SPACY_MODELS` is installed, else the rules.

    Raises:
        ValueError: `spacy` without an installed model, or another method.
    """
    parsers = {"spacy": _spacy_phrase, "rules": _rules_phrase}
    method = resolved_method(method)
    return parsers[method](text) or " ".join(text.lower().split())


def resolved_method(method: str) -> str:
    """`spacy` or `rules` for any `method` of `noun_phrase`. Raises ValueError where it cannot be had."""
    installed = spacy_model()
    if method == "auto":
        return "spacy" if installed else "rules"
    if method == "spacy" and installed is None:
        raise ValueError(f"There is no spaCy with one of {', '.join(SPACY_MODELS)}: install one, or choose 'rules'.")
    if method not in ("spacy", "rules"):
        raise ValueError(f"noun phrases are found by 'auto', 'spacy' or 'rules', got {method!r}.")
    return method


@cache
def spacy_model() -> str | None:
    """The first of `SPACY_MODELS` that is installed beside spaCy."""
    if find_spec("spacy") is None:
        return None
    return next((name for name in SPACY_MODELS if find_spec(name) is not None), None)


@cache
def _spacy_pipeline() -> Callable:
    return import_module("spacy").load(spacy_model(), exclude=["ner"])


def _spacy_phrase(text: str) -> str:
    """Of the noun chunks, the one of the sentence's root, else the first, without what the rules would leave out."""
    chunks = list(_spacy_pipeline()(" ".join(text.lower().split())).noun_chunks)
    roots = [chunk for chunk in chunks if chunk.root.head is chunk.root] or chunks[:1]
    words = [token.text for chunk in roots[:1] for token in chunk if token.pos_ not in ("DET", "NUM", "PRON", "PUNCT")]
    return " ".join(word for word in words if word not in _PLACES)


def _rules_phrase(text: str) -> str:
    text = _OCLOCK.sub("oclock", _POSSESSIVE.sub("'s", text.lower().replace("’", "'")))
    return _phrase(_TOKEN.findall(_HYPHEN.sub("-", text)))


def _phrase(tokens: list[str], after_measure: bool = False) -> str:
    """One pass: adjectives are gathered, nouns join them, the first thing after a noun ends the phrase; or ""."""
    before: list[str] = []  # adjectives, and "and" between them
    nouns: list[str] = []
    for position, token in enumerate(tokens):
        following = tokens[position + 1] if position + 1 < len(tokens) else ""
        kind = _kind(token, following, bool(nouns))
        if not before and not nouns and _only_relates(tokens, position):
            return ""
        if kind == "of":
            if nouns and nouns[-1] in _MEASURES and not after_measure:
                inner = _phrase(tokens[position + 1 :], after_measure=True)
                return " ".join([*before, *nouns, *(["of", inner] if inner else [])])
            if nouns and nouns[-1] not in _PARTS:
                break
            nouns.clear()
        elif kind == "noun":
            if nouns and _ends_before(nouns[-1], token):
                break
            nouns.append(token)
        elif kind != "skip" and nouns:
            break
        elif kind == "adjective":
            before.append(token)
        elif kind == "and" and before and before[-1] != "and" and token != ",":
            before.append("and")
        elif kind == "end" and before and before[-1] != "and":
            break
    if not nouns and before and before[-1] == "and":
        before.pop()
    return " ".join(before + nouns)


def _only_relates(tokens: list[str], position: int) -> bool:
    """Whether what follows is what the thing is near to: "behind the man", "left of the pole", "on top of the box"."""
    token = tokens[position]
    if token == "of":
        last = tokens[max(0, position - 2) : position]
        return last[-1:] in (["left"], ["right"]) or last in (["in", "front"], ["on", "top"])
    if token not in _RELATIONS or token == "wearing":
        return False
    following = next((word for word in tokens[position + 1 : position + 9] if word not in _SKIPPED), "")
    return following[:1].isalpha() and following not in _PLACES


def _ends_before(noun: str, following: str) -> bool:
    """Whether a noun that directly follows `noun` is another thing: in "lady glasses", not in "tennis player"."""
    return noun in _PEOPLE and following not in _KEPT_AFTER_PERSON


def _kind(token: str, following: str, has_noun: bool) -> str:
    """What `token` is to the phrase: of, and, end, place, skip, adjective or noun."""
    if token == "of":
        return "of"
    if token in ("and", "&", "n", ","):
        return "and"
    if not token[0].isalnum():
        return "end" if has_noun else "skip"
    if token in ("one", "ones"):
        return "noun" if not has_noun and not _is_nominal(following) else "skip"
    if token in _SKIPPED or token in _NUMBERS or token[0].isdigit():
        return "end" if has_noun else "skip"
    if token in _PLACES:
        return "place"
    if token in _ENDS:
        return "end"
    if token in _ADJECTIVES:
        return "noun" if token in _NOUNS_TOO and not has_noun and not _is_nominal(following) else "adjective"
    if (token.endswith(("'s", "s'")) or token in _OWNERS) and _is_nominal(following) and not has_noun:
        return "adjective"
    if token.endswith("ing") and token not in _NOUNS_IN_ING:
        return "end" if has_noun or token in _RELATIONS else "skip"
    if token.endswith("ed") and token not in _NOUNS_IN_ED:
        return "adjective" if not has_noun else "noun" if _is_nominal(following) else "end"
    return "noun"


def _is_nominal(token: str) -> bool:
    """Whether a phrase may go on with `token`."""
    return bool(token) and token[0].isalpha() and token not in _ENDS and token not in _SKIPPED and token not in _PLACES
