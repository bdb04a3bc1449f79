"""Multiple choice: what a free answer to a question with options says."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medbench.scoring.normalise import tokens

_LETTER_FIRST = re.compile(r"\W*([A-Za-z])(?![^\W_])[\W_]*(.*)", re.DOTALL)


def named_option(prediction: str, options: Sequence[str]) -> str:
    """The option that an answer names by its letter, else the answer as it is.

    Applied before any profile's closed rule, whose gold is the text of an option: `B`, `(b)`, `B.` and `B. Liver` are
    option B where that is what B says; a letter with another text is no answer to this question and is left as it is.
    An answer that is the text of an option is never read as a letter.

    Example:
        >>> named_option("B.", ["Lung", "Liver"]), named_option("(b) liver", ["Lung", "Liver"])
        ('Liver', 'Liver')
        >>> named_option("A liver", ["Lung", "Liver"]), named_option("A", [])
        ('A liver', 'A')
    """
    if not options or prediction in options:
        return prediction
    said = tokens(prediction)
    if any(said == tokens(option) for option in options):
        return prediction
    found = _LETTER_FIRST.fullmatch(prediction)
    if found is None:
        return prediction
    place = ord(found[1].upper()) - ord("A")
    if place >= len(options) or (tokens(found[2]) and tokens(found[2]) != tokens(options[place])):
        return prediction
    return options[place]
