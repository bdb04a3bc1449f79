"""What a card says under `metadata:`: the data, its splits and layouts, what is asked, and how it is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medbench.data.classes import Augment, check_classes
from medbench.data.layouts import IMAGES_ELSEWHERE, check_layout


class Strict(BaseModel):
    """A part of a card: unknown fields are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(Strict):
    """How many items a split must have, and the digest of its questions and answers (`data verify` prints it).

    `count: null` says that the number is not known for sure, so nothing about the split is pinned.
    """

    count: Annotated[int, Field(gt=0)] | None
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class ClosedRule(Strict):
    """Decides which questions are closed.

    `field`: the data set says so (`name` holds `value`, compared after stripping); `yes_no`: the gold answer is
    yes or no; `all`: every question is closed; `none`: every question is open.
    """

    rule: Literal["field", "yes_no", "all", "none"]
    name: str | None = None
    value: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> ClosedRule:
        if self.rule == "field" and (self.name is None or self.value is None):
            raise ValueError("rule 'field' needs 'name' and 'value'")
        return self


class Holdout(Strict):
    """A validation split cut from the training images, for data sets that have none.

    The images whose sha256 of `seed:image` sorts first are held out: the same for every method and seed.
    """

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0


class Hub(Strict):
    """Where the hub has the data, and in which layout."""

    id: str
    layout: str
    revision: str | None = None


class Confidence(Strict):
    """How sure it is that the paper's 23 tasks include this one (`H` >= .85, `M` .5-.85, `L` < .5)."""

    level: Literal["H", "M", "L", "none"]
    value: Annotated[float, Field(ge=0, le=1)] | None = None
    note: str | None = None


class AlwaysYes(Strict):
    """What an answerer gets that says yes to every test question, rounded to four decimals (`data verify` checks it).

    Over a set with few yes its accuracy is low and its F1 is not; over one with many, accuracy looks like skill.
    """

    accuracy: Annotated[float, Field(ge=0, le=1)]
    balanced_accuracy: Annotated[float, Field(ge=0, le=1)]
    f1: Annotated[float, Field(ge=0, le=1)]


Kind = Literal["vqa", "report", "hallucination", "classification"]
#: The rule that a card of kind classification need not name.
CLOSED = {"rule": "all"}


class Metadata(Strict):
    """Our fields of a card.

    `kind` decides how each item is scored and which figures a task has (`medbench.scoring.kinds`). `images_of` names
    other data sets that it asks about: what was trained on one of them has seen the images. `candidates` are the
    answers whose likelihoods are compared for each closed question; a question that offers its own options (multiple
    choice) is compared on those.

    Of yes/no questions (kind `hallucination`): `label` is `answer` where the published answer is the gold, and
    `first_word` where the gold is its first word if that is yes or no; the other items are left out and counted.
    `types` names the field of the data that types the questions, for figures by type.

    Of kind classification: `classes`, in the order of the labels, class -> the phrases that stand for it in the
    `templates` (all with all are the ensemble of prompts, the first with the first is the single prompt); with two
    classes, `positive` is the one that AUROC and F1 are of; `augment` is what training does to images. Every such item
    is closed, and none has candidates.
    """

    version: Annotated[int, Field(ge=1)]
    kind: Kind
    dataset: str
    images_of: tuple[str, ...] = ()
    description: str
    folder: str
    layouts: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    hub: Hub | None = None
    splits: dict[Literal["train", "validation", "test"], Split]
    holdout: Holdout | None = None
    closed: ClosedRule
    candidates: tuple[str, ...] = ("yes", "no")
    label: Literal["answer", "first_word"] = "answer"
    types: Annotated[str | None, Field(min_length=1)] = None
    always_yes: AlwaysYes | None = None
    classes: dict[str, tuple[str, ...]] = {}
    templates: tuple[str, ...] = ()
    positive: str | None = None
    augment: Augment | None = None
    licence: str
    access: Literal["open", "request", "credentialed", "generated"]
    obtain: str
    citation: str
    confidence: Confidence

    @model_validator(mode="before")
    @classmethod
    def _classes_are_closed(cls, value: Any) -> Any:
        """Fills in `closed`, which such a card does not say; it has no default, so other digests stay as they are."""
        if not isinstance(value, dict) or value.get("kind") != "classification":
            return value
        for field in ("candidates", "label", "types"):
            if field in value:
                raise ValueError(f"{field}: not for kind classification, whose answers are its classes")
        if value.get("closed", CLOSED) != CLOSED:
            raise ValueError("closed: not for kind classification, of which every item is closed")
        return value | {"closed": CLOSED}

    @field_validator("splits")
    @classmethod
    def _has_test(cls, value: dict[str, Split]) -> dict[str, Split]:
        if "test" not in value and "train" not in value:
            raise ValueError("a task needs a 'test' split (or, to be only trained on, a 'train' split)")
        return value

    @property
    def datasets(self) -> frozenset[str]:
        """Its data set and those whose images it asks about."""
        return frozenset((self.dataset, *self.images_of))

    @field_validator("candidates")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or not all(text.strip() for text in value):
            raise ValueError("should be different answers, none empty")
        return value

    @model_validator(mode="after")
    def _whole_classes(self) -> Metadata:
        check_classes(self.classes, self.templates, self.positive, needed=self.kind == "classification")
        if self.augment is not None and self.kind != "classification":
            raise ValueError("augment: only for kind classification")
        return self

    @model_validator(mode="after")
    def _known_layouts(self) -> Metadata:
        for layout, options in self.layouts.items():
            check_layout(layout, options, self.splits, tuple(self.classes))
            if layout in IMAGES_ELSEWHERE and len(Path(self.folder).parts) != 1:
                raise ValueError(
                    f"{layout}.images: is relative to the data root, so {self.folder!r} must lie right in it"
                )
        if self.hub is not None and self.hub.layout not in self.layouts:
            raise ValueError(f"hub.layout {self.hub.layout!r} is none of layouts ({', '.join(self.layouts)})")
        return self

    @model_validator(mode="after")
    def _yes_or_no(self) -> Metadata:
        if self.kind == "hallucination":
            if self.closed.rule != "all":
                raise ValueError(f"closed.rule: should be 'all' where kind is hallucination, is {self.closed.rule!r}")
            return self
        for field in ("label", "types", "always_yes"):
            if getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field}: only for kind hallucination, not for {self.kind}")
        return self
