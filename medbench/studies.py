"""The runs behind `medbench forget` and `medbench interference`: ordinary RunSpecs, each with its part in the study.

No training code of its own: what a sequence is, and that it is tested as it goes on, a RunSpec says by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from medbench.catalog import Catalog
from medbench.data.card import Card
from medbench.errors import RequestError, did_you_mean
from medbench.plan import Plan, resolve
from medbench.plan_data import cards_of
from medbench.request import Request
from medbench.scoring.figures import UNBOUNDED, better
from medbench.scoring.kinds import get_family
from medbench.spec import RunSpec

#: `sequence`: traced, one task after another; `joint`: all at once; `alone`: one of them; `none`: nothing is trained.
Role = Literal["sequence", "joint", "alone", "none"]
_Part = tuple[Role, str | None, Request]
#: Kind of task -> the figures that it is judged by, where none are asked for.
METRICS = {
    "vqa": ("closed_accuracy", "open_recall"),
    "hallucination": ("accuracy",),
    "report": ("rouge_l",),
    "classification": ("accuracy",),
}


@dataclass(frozen=True)
class Member:
    """A run of a study: its part, the task that it trains on alone (role `alone`), and what it is."""

    role: Role
    task: str | None
    spec: RunSpec


@dataclass(frozen=True)
class Study:
    """The runs of a study.

    Attributes:
        tasks: by name, in order.
        metrics: the figures that each is judged by.
        methods: in the order asked for.
        seeds: of each method.
        members: the runs, in the order to do them.
        plan: of all of them.
    """

    tasks: tuple[str, ...]
    metrics: dict[str, tuple[str, ...]]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    members: tuple[Member, ...]
    plan: Plan

    def of(self, role: Role, method: str | None = None, task: str | None = None) -> list[RunSpec]:
        """The specs of a role, seeds in order; none where the study has no such runs."""
        found = [m.spec for m in self.members if (m.role, m.task) == (role, task)]
        return [spec for spec in found if method in (None, spec.method.name)]


def forgetting_study(request: Request, catalog: Catalog, metrics: Sequence[str] = (), bounds: bool = True) -> Study:
    """Training on one task after another, and what it is held against.

    The sequence is one traced run a method and seed. Its bounds are ordinary runs: all tasks at once (`joint`), each
    later task alone (`alone`; the first task alone is the sequence's first stage), and the backbone as it is (`none`).

    Args:
        request: `tasks` is the sequence, `trace` where it is tested (default: at every epoch).
        catalog: where names are looked up.
        metrics: the figures; those of `METRICS` where none are given.
        bounds: whether the bounds are run.

    Raises:
        RequestError: fewer than two tasks, one twice, one without training data, a method that trains nothing, a
            figure that cannot be paired item by item; and as `medbench.plan.resolve`.
    """
    cards = _sequence(request, catalog, "--sequence")
    names = [card.name for card in cards]
    chosen = _metrics(cards, metrics)
    one = [[text] for text in _texts(request, catalog)]
    parts: list[_Part] = [("sequence", None, replace(request, train_tasks=one, trace=request.trace or "epoch"))]
    if bounds:
        plain = replace(request, trace=None)
        parts += [("none", None, replace(plain, methods=["none"], settings=_without_training(request.settings)))]
        parts += [("joint", None, replace(plain, train_tasks=[[text for stage in one for text in stage]]))]
        alone = list(zip(names, one, strict=True))[1:]
        parts += [
            ("alone", name, replace(plain, train_tasks=[stage], settings=_mixtures(request.settings, [name])))
            for name, stage in alone
        ]
    return _study(request, catalog, cards, chosen, parts)


def interference_study(request: Request, catalog: Catalog, metrics: Sequence[str] = ()) -> Study:
    """Each task trained on alone, against training on all of them at once; the runs are those of `medbench run`.

    Raises:
        RequestError: as `forgetting_study`.
    """
    cards = _sequence(request, catalog, "--tasks")
    chosen = _metrics(cards, metrics)
    parts: list[_Part] = [("joint", None, request)]
    for card, text in zip(cards, _texts(request, catalog), strict=True):
        settings = _mixtures(request.settings, [card.name])
        parts.append(("alone", card.name, replace(request, tasks=[text], settings=settings)))
    return _study(request, catalog, cards, chosen, parts)


def _study(
    request: Request,
    catalog: Catalog,
    cards: Sequence[Card],
    metrics: dict[str, tuple[str, ...]],
    parts: Sequence[_Part],
) -> Study:
    methods = tuple(dict.fromkeys(request.methods))
    for name in methods:
        if catalog.method(name).tuner == "none":
            raise RequestError(f"--method {name}: trains nothing, so it can forget nothing; name methods that train")
    plans = [(role, task, resolve(asked, catalog)) for role, task, asked in parts]
    members = [Member(role, task, spec) for role, task, plan in plans for spec in plan.specs]
    known = {name: card for _, _, plan in plans for name, card in plan.cards.items()}
    whole = Plan([member.spec for member in members], known, plans[0][2].backbone)
    named = tuple(dict.fromkeys(m.spec.method.name for m in members if m.role != "none"))
    seeds = tuple(dict.fromkeys(request.seeds))
    return Study(tuple(card.name for card in cards), metrics, named, seeds, tuple(members), whole)


def _texts(request: Request, catalog: Catalog) -> list[str]:
    """Each task as it can be named in a request: what was asked for, wildcards and groups taken apart."""
    return [name for pattern in request.tasks for name in catalog.task_names(pattern)]


def _sequence(request: Request, catalog: Catalog, option: str) -> list[Card]:
    texts = _texts(request, catalog)
    cards = [card for text in texts for card in cards_of([text], catalog)]
    names = [card.name for card in cards]
    asked = f"{option} {','.join(names)}"
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise RequestError(f"{asked}: {', '.join(twice)} is there twice; name different tasks")
    if len(cards) < 2:
        raise RequestError(f"{option} {','.join(request.tasks)}: needs at least two tasks, for example slake,vqa_rad")
    for card in cards:
        splits = card.metadata.splits
        for split, verb in (("train", "trained on"), ("test", "tested")):
            if split not in splits:
                raise RequestError(f"{asked}: task {card.name} has no {split} split and cannot be {verb}; leave it out")
    return cards


def _metrics(cards: Sequence[Card], asked: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The figures of each task: means over items, so that they can be paired, of which more is better."""
    if not asked:
        return {card.name: METRICS[card.metadata.kind] for card in cards}
    known = {card.name: _means(card.metadata.kind) for card in cards}
    every = dict.fromkeys(name for names in known.values() for name in names)
    for name in asked:
        if name not in every:
            hint = did_you_mean(name, every)
            raise RequestError(f"--metrics {name}: no mean over items of these tasks of which more is better; {hint}")
    for task, names in known.items():
        if not set(names) & set(asked):
            raise RequestError(f"--metrics {','.join(asked)}: task {task} has none of them; it has {', '.join(names)}")
    return {task: tuple(name for name in dict.fromkeys(asked) if name in names) for task, names in known.items()}


def _means(kind: str) -> list[str]:
    means = [name for name, measure in get_family(kind).MEASURES.items() if measure.statistic is None]
    return [name for name in means if better(name) == 1 and name not in UNBOUNDED]


def _mixtures(settings: dict[str, Any], trained: Sequence[str]) -> dict[str, Any]:
    """The settings without the mixture weights of tasks that are not trained on here."""
    weights = [f"mixture.{name}" for name in trained]
    return {key: value for key, value in settings.items() if not key.startswith("mixture.") or key in weights}


def _without_training(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.startswith(("mixture.", "adapter.", "training."))}
