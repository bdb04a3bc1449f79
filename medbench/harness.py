"""The lm-evaluation-harness surface: the data and the scoring behind the cards' `!function` fields.

A folder of our cards is a valid `--include_path`; lm-eval passes a card's `metadata:` to `dataset`, merged with what
`--metadata '{"data_root": "DIR"}'` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medbench.catalog import Catalog
from medbench.data.card import Metadata
from medbench.data.item import lettered
from medbench.data.load import load_items
from medbench.errors import RequestError
from medbench.scoring.choices import named_option
from medbench.scoring.profiles import get_profile
from medbench.scoring.vqa import METRICS


def dataset(**metadata: Any) -> dict[str, Any]:
    """A card's published splits as `datasets.Dataset`, in the card's order.

    Args:
        metadata: the card's `metadata:` block; beside it `data_root` (default: `medbench.toml`, else the hub) and
            `task`, the card's name, when it cannot be told from the metadata.

    Returns:
        Split name -> data set with columns id, image, question, answer, type, options (as a prompt shows them) and
        choices (the same as a list; both empty unless the question is multiple choice).

    Raises:
        RequestError: the metadata is no card's, or the data is not there.
    """
    import datasets

    catalog = Catalog()
    root = metadata.get("data_root") or catalog.settings.data_root
    folder = Path(root) if root else None
    card = _card_of(metadata, catalog)
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("id", "question", "answer", "type", "options")}
        | {"choices": datasets.Sequence(datasets.Value("string")), "image": datasets.Image()}
    )

    def rows(split: str, digest: str) -> Any:
        # The digest is here because `datasets` caches by the arguments: changed questions are read again.
        for item in load_items(card, split, folder).items:
            image = {"bytes": item.image.read(), "path": None}
            yield {
                "id": item.id,
                "question": item.question,
                "answer": item.answer,
                "type": item.type,
                "options": lettered(item.options),
                "choices": list(item.options),
                "image": image,
            }

    return {
        split: datasets.Dataset.from_generator(
            rows, features=features, gen_kwargs={"split": split, "digest": load_items(card, split, folder).digest}
        )
        for split in card.metadata.splits
    }


def _card_of(metadata: Mapping[str, Any], catalog: Catalog) -> Any:
    own = {key: value for key, value in metadata.items() if key in Metadata.model_fields}
    for name in [metadata["task"]] if "task" in metadata else catalog.paths("tasks"):
        card = catalog.task(name)
        if card.metadata == Metadata.model_validate(own):
            return card
    raise RequestError("lm-eval: the metadata is not that of a card in the catalogue; install the card's folder")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The figures of one item under the default profile, by the names of the card's `metric_list`.

    Args:
        doc: a row of `dataset` (`choices` may be absent).
        results: the generated answer.
    """
    profile = get_profile("medbench")
    rule = profile.score_closed if doc["type"] == "closed" else profile.score_open
    scores = rule(doc["answer"], named_option(results[0], doc.get("choices") or ()))
    return {
        name: float(value)
        for name, (kind, column) in METRICS.items()
        if kind == doc["type"] and (value := scores[column]) is not None
    }
