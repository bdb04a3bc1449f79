"""METEOR of reports by NLTK, and the WordNet that it needs.

Lavie and Agarwal (2007) as `nltk.translate.meteor_score.single_meteor_score` has it: exact, stemmed (Porter) and
WordNet matches, alpha .9, beta 3, gamma .5. NLTK asks WordNet for the synonyms of stems, so those of a word that the
stemmer shortens (effusion -> effus) are missed. Other programs have other parameters, paraphrase tables and tokens:
figures of one are not those of another.

WordNet is a resource of NLTK (`python -m nltk.downloader wordnet`), looked for in NLTK's data folders. It is looked for
before anything is generated (`medbench.scoring.report.check_resources`); without it the metric is null with a reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from medbench.errors import WorkError

MISSING = "NLTK's WordNet is not installed (python -m nltk.downloader wordnet)"
_LONGEST = 64  # letters; no word of WordNet has as many, and stemming is slow on a megabyte without a space


class Meteor:
    """Scores pairs of token lists with one WordNet.

    Args:
        reader: NLTK's `WordNetCorpusReader`, or whatever has `synsets(word)`.
        name: of the WordNet, for the record.
    """

    def __init__(self, reader: Any, name: str) -> None:
        from nltk.stem.porter import PorterStemmer

        self.name = name
        self._words = _Words(reader)
        self._stemmer = _Stems(PorterStemmer())

    def score(self, gold: Sequence[str], prediction: Sequence[str]) -> float:
        """METEOR of one pair, in [0, 1]; 0 where either has no word or nothing matches.

        Args:
            gold: the words of the reference.
            prediction: those of the prediction.
        """
        from nltk.translate.meteor_score import single_meteor_score

        if not gold or not prediction:
            return 0.0
        found = single_meteor_score(gold, prediction, str, self._stemmer, self._words)
        return float(found)


@lru_cache(maxsize=1)
def load_meteor() -> Meteor | None:
    """METEOR with the WordNet of NLTK's data folders (`nltk.data.path`; it reads no other); None where there is none.

    Raises:
        WorkError: the WordNet is damaged.
    """
    from nltk.corpus.reader.wordnet import WordNetCorpusReader, WordNetError

    class Reader(WordNetCorpusReader):
        """Without the map to other WordNets, which would look for a second one."""

        def map_wn(self, version: str = "wordnet") -> None:
            return None

    root = _place()
    if root is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are no other languages
            reader = Reader(root, None)
        return Meteor(reader, f"WordNet {reader.get_version() or 'of unknown version'}")
    except (WordNetError, OSError, ValueError, LookupError, AssertionError) as error:
        raise WorkError(f"WordNet in {root} cannot be read: {error}") from error


def _place() -> Any:
    from nltk.data import find

    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return find(name)
        except LookupError:
            continue
    return None


class _Words:
    """A WordNet that remembers what it was asked."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.synsets = lru_cache(maxsize=20_000)(self._look_up)

    def _look_up(self, word: str) -> list[Any]:
        if len(word) > _LONGEST:
            return []
        try:
            # A damaged file gives None for a set that is not where the index says.
            return [found for found in self._reader.synsets(word) if found is not None]
        except Exception as error:  # what NLTK raises over a damaged file is of no one kind
            raise WorkError(f"WordNet cannot be read at {word[:40]!r}: {error}") from error


class _Stems:
    """A stemmer that remembers, and leaves what is no word alone."""

    def __init__(self, stemmer: Any) -> None:
        self.stem = lru_cache(maxsize=20_000)(lambda word: stemmer.stem(word) if len(word) <= _LONGEST else word)
