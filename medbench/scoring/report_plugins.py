"""Clinical metrics of reports that need a trained model: plug-ins, asked for by name with the folder of their weights.

A plug-in that is asked for and cannot run is an error before anything is generated or scored, never a gap in a table;
one that is not asked for is not listed. Weights are read from the folder that is given and never fetched.

Without a word in the prediction each of them is 0 (RaTEScore itself says .5, CheXbert "no finding").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from medbench.errors import RequestError, did_you_mean
from medbench.files import file_digest
from medbench.scoring.measures import Measure
from medbench.scoring.weighted import SumStatistic, ratio_statistic

Step = Callable[[int, int], None]
Scorer = Callable[[Path, Sequence[str], Sequence[str], Step], Mapping[str, Sequence[float]]]
"""From the weights' folder, references and predictions to columns of the score table."""


@dataclass(frozen=True)
class Plugin:
    """A metric with weights.

    Attributes:
        name: by which it is asked for.
        module: that must be importable.
        package: that it is of.
        extra: of medbench, that installs the package; None where there is none.
        weights: files that the folder must hold.
        models: models that it must hold, each a folder as the hub has it: config.json and the weights.
        where: where they are had.
        source: the paper.
        measures: its figures.
        scorer: `module:function` of this package, imported when it runs.
    """

    name: str
    module: str
    package: str
    extra: str | None
    weights: tuple[str, ...]
    where: str
    source: str
    measures: Mapping[str, Measure]
    scorer: str
    models: tuple[str, ...] = ()

    def files(self, folder: Path) -> dict[str, list[Path]]:
        """What it needs -> the files in a folder that are that, none where it is missing."""
        needed = (*self.weights, *(f"{model}/config.json" for model in self.models))
        found = {name: [path] if (path := folder / name).is_file() else [] for name in needed}
        for model in self.models:
            place = folder / model
            found[f"{model}/*.safetensors"] = sorted(place.glob("*.safetensors")) or sorted(place.glob("*.bin"))
        return found


@dataclass(frozen=True)
class Requested:
    """A plug-in with the folder of its weights, checked to be there."""

    plugin: Plugin
    folder: Path

    def score(self, golds: Sequence[str], predictions: Sequence[str], step: Step) -> Mapping[str, Sequence[float]]:
        """Its columns of the score table, a value a report."""
        module, _, function = self.plugin.scorer.partition(":")
        scorer: Scorer = getattr(import_module(module), function)
        return scorer(self.folder, golds, predictions, step)

    @property
    def implementation(self) -> str:
        """Source, package, version and the sha256 of each file of the weights, for the record."""
        package = self.plugin.package
        try:
            package += f" {version(package)}"
        except PackageNotFoundError:
            package += " of unknown version"
        files = [path for found in self.plugin.files(self.folder).values() for path in found]
        digests = ", ".join(f"{path.relative_to(self.folder)} {file_digest(path)[:12]}" for path in files)
        return f"{self.plugin.source}; {package}; weights {digests}"


def f1_of_counts(hits: ArrayLike, said: ArrayLike, wanted: ArrayLike) -> SumStatistic:
    """Micro F1 as a function of item weights: 2 * hits / (said + wanted); NaN where nothing is said and wanted.

    Args:
        hits: labels that prediction and reference share; shape (n,).
        said: labels of the prediction.
        wanted: labels of the reference.

    Example:
        >>> f1_of_counts([1, 0], [2, 0], [1, 1])(np.ones((1, 2))).tolist()
        [0.5]
    """
    return ratio_statistic(2 * np.asarray(hits, dtype=np.float64), np.add(said, wanted))


def _f1(prefix: str) -> Measure:
    columns = tuple(f"{prefix}_{part}" for part in ("hits", "said", "wanted"))
    return Measure("open", columns, "not scored", f1_of_counts, undefined="no report has a label")


def _mean(name: str) -> Measure:
    return Measure("open", (name,), "not scored")


_HERE = "medbench.scoring.report_models"
PLUGINS: dict[str, Plugin] = {
    "chexbert": Plugin(
        *("chexbert", "transformers", "transformers", None, ("chexbert.pth", "vocab.txt")),
        "chexbert.pth of the hub's StanfordAIMI/RRG_scorers; vocab.txt of google-bert/bert-base-uncased",
        "Smit et al., EMNLP 2020; micro F1 over the 14 labels and over 5, possible counted as present",
        {"chexbert_f1": _f1("chexbert"), "chexbert_f1_5": _f1("chexbert_5")},
        f"{_HERE}:chexbert",
    ),
    "radgraph": Plugin(
        *("radgraph", "radgraph", "radgraph", "radgraph", ("radgraph-xl/weights.th", "radgraph-xl/config.json")),
        "radgraph-xl.tar.gz of the hub's StanfordAIMI/RRG_scorers, unpacked into radgraph-xl",
        "Jain et al., NeurIPS 2021; F1 with reward level 'partial'",
        {"radgraph_f1": _mean("radgraph_f1")},
        f"{_HERE}:radgraph",
    ),
    "ratescore": Plugin(
        *("ratescore", "RaTEScore", "RaTEScore", "ratescore", ()),
        "the hub's Angelakeke/RaTE-NER-Deberta and FremyCompany/BioLORD-2023-C, a folder each",
        "Zhao et al., EMNLP 2024; affinity matrix 'long'",
        {"ratescore": _mean("ratescore")},
        f"{_HERE}:ratescore",
        models=("RaTE-NER-Deberta", "BioLORD-2023-C"),
    ),
    "green": Plugin(
        *("green", "green_score", "green-score", None, ()),
        "the hub's StanfordAIMI/GREEN-radllama2-7b; the package green-score 0.0.12 wants Python 3.12.1",
        "Ostmeier et al., EMNLP Findings 2024",
        {"green": _mean("green")},
        f"{_HERE}:green",
        models=(".",),
    ),
}


def request_plugins(words: Sequence[str]) -> list[Requested]:
    """Plug-ins as a command names them, `NAME=FOLDER` each, checked to be able to run.

    Raises:
        RequestError: an unknown name or one given twice, no folder, the package is not installed, or the folder lacks
            a file; says what would be right.

    Example:
        >>> request_plugins(["chexbert"])
        Traceback (most recent call last):
        ...
        medbench.errors.RequestError: chexbert: name the folder of its weights: chexbert=DIR, with chexbert.pth and \
vocab.txt (chexbert.pth of the hub's StanfordAIMI/RRG_scorers; vocab.txt of google-bert/bert-base-uncased)
    """
    asked = [_checked(word) for word in words]
    names = [each.plugin.name for each in asked]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise RequestError(f"plug-in {', '.join(twice)}: asked for more than once; one folder each")
    return asked


def plugin_measures(columns: Sequence[str]) -> dict[str, Measure]:
    """The figures of the plug-ins that a score table holds the columns of."""
    return {
        name: measure
        for plugin in PLUGINS.values()
        for name, measure in plugin.measures.items()
        if set(measure.columns) <= set(columns)
    }


def plugin_implementations(plugins: Sequence[Requested]) -> dict[str, str]:
    """Metric -> what it is computed with, for the record; reads all the weights for their digests."""
    return {name: said for asked in plugins for said in [asked.implementation] for name in asked.plugin.measures}


def _checked(word: str) -> Requested:
    name, _, place = word.partition("=")
    if name not in PLUGINS:
        raise RequestError(f"unknown plug-in {name!r}; {did_you_mean(name, PLUGINS)}")
    plugin = PLUGINS[name]
    found = plugin.files(Path(place))
    files = " and ".join(found)
    if not place:
        raise RequestError(f"{name}: name the folder of its weights: {name}=DIR, with {files} ({plugin.where})")
    if find_spec(plugin.module) is None:
        hint = f"pip install 'medbench[{plugin.extra}]'" if plugin.extra else f"pip install {plugin.package}"
        raise RequestError(f"{name}: its package {plugin.module} is not installed; {hint}")
    missing = [file for file, paths in found.items() if not paths]
    if missing:
        raise RequestError(f"{name}: {Path(place) / missing[0]} is missing; get {plugin.where}")
    return Requested(plugin, Path(place))
