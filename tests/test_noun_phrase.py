"""Noun phrases of expressions as people type them; the expressions are our own."""

from types import SimpleNamespace

import pytest

from hf_ris.models import noun_phrase as module
from hf_ris.models.noun_phrase import noun_phrase, resolved_method


EXPRESSIONS = {
    # where the thing is, and what is around it, is left out
    "the man in the red coat on the left": "man",
    "second brown teddy bear from the right": "brown teddy bear",
    "small kite above the tree": "small kite",
    "bottom right mug": "mug",
    "parrot far left": "parrot",
    "in front lady": "lady",
    "on the left, the dark green suitcase": "dark green suitcase",
    "9 o'clock plate": "plate",
    "number 12 goalkeeper": "goalkeeper",
    "a woman who is wearing a scarf": "woman",
    "van parked by the school": "van",
    "dog chasing a ball": "dog",
    "girl licking an ice cream": "girl",
    # what belongs to the noun stays
    "red and white striped tent": "red and white striped tent",
    "large, woolly sheep": "large woolly sheep",
    "cream colored sofa": "cream colored sofa",
    "blue jacket man": "blue jacket man",
    "a slice of lemon cake on a tray": "slice of lemon cake",
    "the farmer's hat": "farmer's hat",
    "the farmer ' s hat": "farmer's hat",
    "a dark blue box - shaped lamp": "dark blue box-shaped lamp",
    "parking meter": "parking meter",
    # nouns side by side that are two things
    "guy blue shirt": "guy",
    "lady sunglasses": "lady",
    "kid yellow boots far right": "kid",
    "fire truck driver": "fire truck driver",
    # what something is part of
    "the back of the bus": "bus",
    "left half of the melon": "melon",
    "one of the two swans": "swans",
    "the handle of the basket": "handle",
    # a word that is noun and adjective
    "orange closest to us": "orange",
    "orange cat": "orange cat",
    "blonde in a green dress": "blonde",
    "a young male wearing a cap": "young male",
    "the one with stripes": "one",
    "red one": "red one",
    # colours stand for what they colour where nothing else is named
    "yellow on the left": "yellow",
    "darker of the two couches": "darker couches",
    # nothing is named: the expression itself
    "far left": "far left",
    "3rd from the right": "3rd from the right",
    "  Looking  at the camera ": "looking at the camera",
    "in front of the bus": "in front of the bus",
    "behind the door": "behind the door",
    "?!": "?!",
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_rules(expression):
    assert noun_phrase(expression, "rules") == EXPRESSIONS[expression]


def test_any_text_gives_a_phrase_and_long_ones_do_not_recurse():
    assert noun_phrase("чашка слева", "rules") == "чашка слева"
    assert noun_phrase("cup of " * 5000, "rules").startswith("cup of cup")
    assert noun_phrase("left of " * 5000 + "cup", "rules").startswith("left of left of")


@pytest.fixture
def fake_spacy(monkeypatch):
    """spaCy whose parse is fixed: "the red cup" is the root's chunk, "a table" another."""

    def parse(text):
        def token(word, kind):
            return SimpleNamespace(text=word, pos_=kind)

        class Chunk(list):
            root = None

        root = SimpleNamespace()
        root.head = root
        cup = Chunk([token("the", "DET"), token("left", "ADJ"), token("red", "ADJ"), token("cup", "NOUN")])
        cup.root = root
        table = Chunk([token("a", "DET"), token("table", "NOUN")])
        table.root = SimpleNamespace(head=root)
        return SimpleNamespace(noun_chunks=iter([table, cup] if "cup" in text else []))

    monkeypatch.setattr(module, "spacy_model", lambda: "en_core_web_sm")
    monkeypatch.setattr(module, "_spacy_pipeline", lambda: parse)


def test_spacy_is_taken_where_it_is_installed(fake_spacy):
    assert resolved_method("auto") == "spacy"
    assert noun_phrase("on a table the left red Cup") == "red cup"
    assert noun_phrase("far  left") == "far left"  # no noun chunk
    assert noun_phrase("dog on the left", "rules") == "dog"


def test_without_spacy_the_rules_are_taken_and_spacy_is_refused(monkeypatch):
    monkeypatch.setattr(module, "spacy_model", lambda: None)
    assert resolved_method("auto") == "rules"
    with pytest.raises(ValueError, match="no spaCy with one of en_core_web_sm"):
        noun_phrase("a dog", "spacy")
    with pytest.raises(ValueError, match="'auto', 'spacy' or 'rules', got 'nltk'"):
        noun_phrase("a dog", "nltk")
