"""Options that a data set writes in one line (`A: lung, B: liver`), and the one that the gold answer names."""

from __future__ import annotations

import re

from medbench.scoring.choices import named_option
from medbench.scoring.normalise import tokens

_LETTER = re.compile(r"(?:^|,\s*)[A-H]\s*[:.)]\s*")


def split_options(line: str) -> tuple[str, ...]:
    """The options of a line, in its order, without their letters; commas inside an option stay.

    Raises:
        KeyError: fewer than two different options; the message is fit for a user.

    Example:
        >>> split_options("A: Left lung, B. Both, left and right, C) None")
        ('Left lung', 'Both, left and right', 'None')
    """
    before, *found = _LETTER.split(line.strip())
    offered = tuple(text.strip() for text in found)
    if before or not all(offered) or len(set(offered)) < 2:
        raise KeyError(f"should have at least two options like 'A: lung, B: liver', found {line[:60]!r}")
    return offered


def gold_option(answer: str, options: tuple[str, ...]) -> str:
    """The option that a gold answer names by its letter, its text or both.

    Raises:
        KeyError: it names none; the message is fit for a user.

    Example:
        >>> gold_option("B", ("Lung", "CT scan")), gold_option("B: CT scan", ("Lung", "CT scan"))
        ('CT scan', 'CT scan')
    """
    named = tokens(named_option(answer, options))
    found = next((option for option in options if tokens(option) == named), None)
    if found is None:
        raise KeyError(f"the answer {answer[:40]!r} is none of the options {', '.join(map(repr, options))}"[:160])
    return found
