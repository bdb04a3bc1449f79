"""Text to tokens, as the default profile compares answers.

The rule is decided here to the last character, since two readings of "punctuation" are two different scores:

* NFKC, then casefold, then NFKC again (casefold can decompose, and the result must not depend on case).
* Invisible format characters (soft hyphen, joiners, byte order mark) are removed; a zero-width space is a
  space.
* A comma between two digits is removed, a point between two digits is kept.
* Everything else that is neither a letter, a digit nor a combining mark becomes a space. That covers Unicode
  punctuation (P*), **symbols (S*)** such as ``+ % < = > $ ^ ~ °`` (those of ASCII are in Python's
  ``string.punctuation``, and most are in the VQA list of punctuation), white space, control characters and
  lone surrogates. So ``<5`` and ``>5`` are the same answer, and a text of symbols only has no tokens.
* A combining mark belongs to the letter before it; with none before it, it is dropped.
* zero..ten become digits, and a/an/the are dropped unless nothing else remains.
"""

import re
import unicodedata
from functools import lru_cache

NUMBER_WORDS = {
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
ARTICLES = frozenset({"a", "an", "the"})

_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_POINT_OUTSIDE_NUMBER = re.compile(r"(?<!\d)\.|\.(?!\d)")
_ZERO_WIDTH_SPACE = "\u200b"


@lru_cache(maxsize=4096)
def _without_format(char: str) -> str:
    """The character, or nothing for an invisible format character (category Cf)."""
    if char == _ZERO_WIDTH_SPACE:
        return " "
    return "" if unicodedata.category(char) == "Cf" else char


@lru_cache(maxsize=4096)
def _word_or_space(char: str) -> str:
    """The character where it may be part of a token, else a space; points were settled before."""
    if char == "." or char.isalnum() or unicodedata.category(char).startswith("M"):
        return char
    return " "


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", "".join(map(_without_format, folded)))


def _without_leading_marks(word: str) -> str:
    start = 0
    while start < len(word) and not word[start].isalnum():
        start += 1
    return word[start:]


def tokens(text: str) -> list[str]:
    """Split a text into the tokens that the `medbench` profile compares.

    Never fails on any string, lone surrogates included; invariant to ASCII case and to spaces and punctuation
    around the text. Source: "Profiles", paragraph `medbench`, of the scoring definition.

    Args:
        text: An answer, as given or as generated.

    Returns:
        The tokens in order; empty if and only if the text has no letter and no digit.

    Example:
        >>> tokens("The Right-lung, 1,000 ml (0.5 cm).")
        ['right', 'lung', '1000', 'ml', '0.5', 'cm']
        >>> tokens("Two"), tokens("A")
        (['2'], ['a'])
    """
    folded = _COMMA_IN_NUMBER.sub("", _fold(text))
    folded = _POINT_OUTSIDE_NUMBER.sub(" ", folded)
    words = map(_without_leading_marks, "".join(map(_word_or_space, folded)).split())
    found = [NUMBER_WORDS.get(word, word) for word in words if word]
    return [token for token in found if token not in ARTICLES] or found
