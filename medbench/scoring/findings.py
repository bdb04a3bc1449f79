"""Which of the 14 CheXpert observations a chest report asserts: phrases, negation and uncertainty, by rules.

Not CheXbert and not CheXpert's labeller: rules of our own over their vocabulary, kept as data in `chexbert14.yaml`.
They run anywhere at once and say the same everywhere, and they make mistakes that a trained labeller does not;
`results/sanity/iu_xray_reports.md` has their agreement with the problem words of IU-Xray, finding by finding.

A report is cut into clauses: at full stops and the like, and before the words under `boundaries` (but, however,
there is, ...). A phrase of a finding found in a clause is

* absent, if a word of negation stands before it in the clause (NegEx: Chapman et al., J Biomed Inform 34, 2001), or
  one of those that negate backwards right after it;
* else possible, if the same holds for a word of uncertainty;
* else present.

Over a report present outweighs possible, which outweighs absent (the order of CheXpert's labeller, Irvin et al., AAAI
2019). Nothing is inferred from one finding to another. What stands under a heading like "indication" is read too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from medbench.errors import WorkError

Label = Literal["present", "possible", "absent"]
NO_FINDING = "No Finding"
SUPPORT_DEVICES = "Support Devices"
_REACH = 160  # characters over which a word of negation or uncertainty reaches forward
_BACK = 60  # and backward
_WEIGHT: dict[Label, int] = {"absent": 0, "possible": 1, "present": 2}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Phrases = tuple[Annotated[str, Field(min_length=1)], ...]


class FindingWords(_Strict):
    """How one finding is worded; see the head of `chexbert14.yaml`."""

    present: Annotated[Phrases, Field(min_length=1)]
    absent: Phrases = ()
    not_: Annotated[Phrases, Field(alias="not")] = ()
    problems: Phrases = ()


class CueWords(_Strict):
    """Words that negate (or make uncertain) what comes after them, and what comes before them."""

    before: Annotated[Phrases, Field(min_length=1)]
    after: Phrases = ()
    never: Phrases = ()


class Vocabulary(_Strict):
    """Findings and cues, as data."""

    version: int
    name: str
    description: str
    findings: Annotated[dict[str, FindingWords], Field(min_length=1)]
    negation: CueWords
    uncertainty: CueWords
    boundaries: Annotated[Phrases, Field(min_length=1)]


@dataclass(frozen=True)
class _Finding:
    present: re.Pattern[str]
    absent: re.Pattern[str] | None
    not_: re.Pattern[str] | None


@dataclass(frozen=True)
class _Cues:
    before: re.Pattern[str]
    after: re.Pattern[str] | None


class Labeller:
    """Labels reports by a vocabulary.

    Example:
        >>> labels = chexbert14().label("Small left effusion, possible pneumonia. No pneumothorax.")
        >>> sorted(labels.items())
        [('Pleural Effusion', 'present'), ('Pneumonia', 'possible'), ('Pneumothorax', 'absent')]
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.name = f"{vocabulary.name} version {vocabulary.version}"
        self.findings = tuple(vocabulary.findings)
        self._findings = {
            name: _Finding(_joined(words.present), _any(words.absent), _any(words.not_))
            for name, words in vocabulary.findings.items()
        }
        self._negation = _Cues(_joined(vocabulary.negation.before), _any(vocabulary.negation.after))
        self._uncertainty = _Cues(_joined(vocabulary.uncertainty.before), _any(vocabulary.uncertainty.after))
        self._never = _any(vocabulary.negation.never)
        self._boundary = _joined(vocabulary.boundaries)

    def label(self, report: str) -> dict[str, Label]:
        """The findings that a report mentions, each with its label; what it does not mention is not in the result.

        `No Finding` is present where no finding other than support devices is present or possible, as in CheXpert;
        a report without a word has no label at all.
        """
        found: dict[str, Label] = {}
        words = False
        for clause in self._clauses(report):
            words = True
            for name, label in self._mentions(clause):
                if name not in found or _WEIGHT[label] > _WEIGHT[found[name]]:
                    found[name] = label
        if words and not any(v != "absent" for k, v in found.items() if k != SUPPORT_DEVICES):
            found[NO_FINDING] = "present"
        return found

    def asserted(self, report: str) -> tuple[frozenset[str], frozenset[str]]:
        """The findings a report asserts, and those together with the ones it calls possible; without `No Finding`."""
        labels = self.label(report)
        labels.pop(NO_FINDING, None)
        present = frozenset(name for name, label in labels.items() if label == "present")
        return present, frozenset(name for name, label in labels.items() if label != "absent")

    def _clauses(self, report: str) -> Iterator[str]:
        for sentence in _SENTENCE.split(report.lower()):
            text = " ".join(sentence.split())
            start = 0
            for match in self._boundary.finditer(text):
                if text[start : match.start()].strip():
                    yield text[start : match.start()]
                start = match.start()
            if any(c.isalnum() for c in text[start:]):
                yield text[start:]

    def _mentions(self, clause: str) -> Iterator[tuple[str, Label]]:
        read = clause if self._never is None else self._never.sub(_blank, clause)
        for name, finding in self._findings.items():
            text = clause if finding.not_ is None else finding.not_.sub(_blank, clause)
            if finding.absent is not None and finding.absent.search(text):
                yield name, "absent"
            for match in finding.present.finditer(text):
                yield name, self._label(read, clause, match.start(), match.end())

    def _label(self, read: str, clause: str, start: int, end: int) -> Label:
        """The label of a phrase from `start` to `end`; `read` is the clause less what only looks like a negation."""
        if _cued(self._negation, read, start, start, end):
            return "absent"
        # A word of uncertainty may stand inside the phrase: "the heart is borderline enlarged".
        return "possible" if _cued(self._uncertainty, clause, start, end, end) else "present"


@lru_cache(maxsize=1)
def chexbert14() -> Labeller:
    """The packaged labeller.

    Raises:
        WorkError: its vocabulary is damaged.
    """
    source = resources.files("medbench.scoring") / "chexbert14.yaml"
    try:
        return Labeller(Vocabulary.model_validate(yaml.safe_load(source.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, ValueError, re.error) as error:
        raise WorkError(f"{source}: {error}") from error


def problem_labels(problems: str, vocabulary: Vocabulary) -> frozenset[str]:
    """The findings that IU-Xray's problem words (separated by semicolons) name; `normal` is `No Finding`.

    Example:
        >>> sorted(problem_labels("Cardiomegaly;Opacity;Spine", chexbert14().vocabulary))
        ['Cardiomegaly', 'Lung Opacity']
    """
    named = {word.strip().casefold() for word in problems.split(";")}
    found = {name for name, words in vocabulary.findings.items() if named & set(words.problems)}
    return frozenset(found | ({NO_FINDING} if "normal" in named else set()))


def contingency(labels: Sequence[frozenset[str]], gold: Sequence[frozenset[str]], name: str) -> Mapping[str, float]:
    """How far two labellings agree on one finding: tp, fp, fn, tn, precision, recall and Cohen's kappa (NaN if 0/0)."""
    pairs = [(name in mine, name in theirs) for mine, theirs in zip(labels, gold, strict=True)]
    tp, fp, fn = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True)))
    tn, n = len(pairs) - tp - fp - fn, max(1, len(pairs))
    agree, chance = (tp + tn) / n, ((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp)) / n**2
    nan = float("nan")
    return {
        **{"tp": tp, "fp": fp, "fn": fn, "tn": tn},
        "precision": tp / (tp + fp) if tp + fp else nan,
        "recall": tp / (tp + fn) if tp + fn else nan,
        "kappa": (agree - chance) / (1 - chance) if chance < 1 else nan,
    }


_SENTENCE = re.compile(r"[.!?;:\n]+(?!\d)")


def _cued(cues: _Cues, text: str, start: int, until: int, end: int) -> bool:
    """Whether a cue stands before a phrase (up to `until`) or right after its `end`."""
    if cues.before.search(text, max(0, start - _REACH), until):
        return True
    return cues.after is not None and cues.after.search(text, end, end + _BACK) is not None


def _blank(match: re.Match[str]) -> str:
    return " " * len(match.group())


def _any(phrases: Phrases) -> re.Pattern[str] | None:
    return _joined(phrases) if phrases else None


def _joined(phrases: Phrases) -> re.Pattern[str]:
    return re.compile(r"(?<![\w-])(?:" + "|".join(_pattern(phrase) for phrase in phrases) + r")(?!\w)")


def _pattern(phrase: str) -> str:
    """The regular expression of a phrase; every phrase is ours, and none can backtrack far (gaps are bounded)."""
    words = phrase.replace("(", "(?:").replace("*", r"\w*").split()
    return " ".join(words).replace(" ~ ", r"(?: (?!no |not |without |normal )[^ ,]+){0,4}? ")
