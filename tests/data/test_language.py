import inspect
import textwrap

import pytest

from skipwise.data.language import language_of

# Begin the Universal Declaration of Human Rights.
DECLARATIONS = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由，在尊严和权利上一律平等。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
}


@pytest.mark.parametrize("language", DECLARATIONS)
def test_languages_are_told_by_their_codes(language):
    assert language_of(DECLARATIONS[language]) == language
    assert language_of(DECLARATIONS[language].upper()) == language


def test_a_traditional_script_is_the_same_language():
    assert language_of("人人生而自由,在尊嚴和權利上一律平等。") == "zh"


@pytest.mark.parametrize("text", ["", " \n", "ok", "12345 678", "0x00 0xff 1.23", "<br><br>", "\ud800", "\x00"])
def test_what_is_no_language_has_none(text):
    assert language_of(text) is None


def test_the_code_in_a_long_text_does_not_outweigh_its_sentences():
    text = DECLARATIONS["ja"] * 1000 + inspect.getsource(textwrap)
    assert language_of(text) == "ja"
