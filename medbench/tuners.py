"""The tuners: this package's, and those of installed packages.

A method (`baselines/<name>.yaml`) names a tuner and its settings. A package adds a tuner of its own, and with it a
method, as one class: a subclass of `medbench.tuner.Tuner` under the entry point group `medbench.methods` (see
CONTRIBUTING.md).
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar

from medbench.backbones.layers import LayerTable, Published
from medbench.errors import RequestError, did_you_mean
from medbench.tuner import Settings, Tuner


class NoTuner(Tuner):
    """The backbone as it is, not trained."""

    ranked = False

    def count(self, settings: Settings, rank: int, table: LayerTable) -> int:
        """0."""
        return 0

    def count_published(self, settings: Settings, rank: int, about: Published) -> Fraction | None:
        """0."""
        return Fraction(0)

    def flops_layer(self, settings: Settings, rank: int, out: int, inp: int) -> int:
        """0."""
        return 0


class FullTuner(Tuner):
    """Every weight of the backbone is trained; of a classification backbone every weight of the adapted tower."""

    ranked = False
    trains_base = True

    def count(self, settings: Settings, rank: int, table: LayerTable) -> int:
        """All parameters, or those of the adapted tower."""
        return table.trained_base

    def count_published(self, settings: Settings, rank: int, about: Published) -> Fraction | None:
        """All parameters."""
        return Fraction(about.denominator)

    def flops_layer(self, settings: Settings, rank: int, out: int, inp: int) -> int:
        """0: the same products with other weights."""
        return 0


class UpcycleTuner(Tuner):
    """Every adapted linear becomes N copies with a router, and what `FullTuner` trains is trained (full-FT MoE)."""

    defaults: ClassVar[dict[str, Any]] = {
        "targets": "language",
        "num_experts": 8,
        "top_k": 2,
        "balance_coefficient": 1e-3,
    }
    ranked = False
    trains_base = True

    def resolved(self, given: Settings) -> dict[str, Any]:
        """As for every tuner; there must be k copies to choose from."""
        settings = super().resolved(given)
        experts, top_k = (_whole(settings, name, settings) for name in ("num_experts", "top_k"))
        if top_k > experts:
            raise RequestError(f"adapter.top_k={top_k} is more than adapter.num_experts={experts}")
        return settings

    def count(self, settings: Settings, rank: int, table: LayerTable) -> int:
        """As `FullTuner`, N - 1 further copies of each adapted weight (the bias is shared) and N n router weights."""
        experts = _whole(settings, "num_experts", self.defaults)
        more = sum(la.count * la.inp * ((experts - 1) * la.out + experts) for la in table.layers)
        return table.trained_base + more

    def router_layer(self, settings: Settings, out: int, inp: int) -> int:
        """One row a copy."""
        return _whole(settings, "num_experts", self.defaults) * inp

    def count_published(self, settings: Settings, rank: int, about: Published) -> Fraction | None:
        """(12 N H^2 + 2 H + 9 H N) L on ViT-B and the rest: N - 1 copies and the routers more than there are."""
        if about.weights is None:
            return None
        experts = _whole(settings, "num_experts", self.defaults)
        more = (experts - 1) * about.weights * about.hidden**2 + experts * about.inputs * about.hidden
        return about.denominator + about.depth * more

    def flops_layer(self, settings: Settings, rank: int, out: int, inp: int) -> int:
        """The router, and k - 1 further products with a weight."""
        top_k = _whole(settings, "top_k", self.defaults)
        return 2 * inp * ((top_k - 1) * out + _whole(settings, "num_experts", self.defaults))


class LoraTuner(Tuner):
    """peft's own LoRA, with rsLoRA and DoRA as its variants. `alpha_over_r` is lora_alpha / r."""

    defaults: ClassVar[dict[str, Any]] = {
        "targets": "language",
        "alpha_over_r": 2.0,
        "dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
    }

    def count_layer(self, settings: Settings, rank: int, out: int, inp: int) -> int:
        """Two factors, r (m + n); DoRA trains a magnitude for each of the m outputs as well."""
        return rank * (out + inp) + (out if settings.get("use_dora") else 0)

    def count_published(self, settings: Settings, rank: int, about: Published) -> Fraction | None:
        """18 H r L on ViT-B; of DoRA's magnitudes one a linear is counted, as published."""
        more = about.linears if settings.get("use_dora") else 0
        return about.depth * (rank * about.hidden * (about.inputs + about.outputs) + more)

    def peft_config(self, settings: dict[str, Any], pattern: str, seed: int) -> Any:
        """A `peft.LoraConfig`."""
        from peft import LoraConfig

        alpha = settings.pop("alpha_over_r", 2.0) * settings["r"]
        if alpha <= 0:
            raise ValueError("alpha_over_r must be positive")
        dropout = settings.pop("dropout", 0.0)
        return LoraConfig(lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern, **settings)


class ExpertLoraTuner(Tuner):
    """This project's tuner: low-rank experts, from N = 1 without a router (PiSSA) to routed spectral segments."""

    defaults: ClassVar[dict[str, Any]] = {
        "targets": "language",
        "num_experts": 8,
        "top_k": 2,
        "init": "spectral",
        "router": "topk",
        "scaling": "consistent",
        "scaling_rank": "total",
        "eta": 1.0,
        "rho": 10.0,
        "lora_alpha": None,
        "residual": True,
        "dropout": 0.0,
        "balance_coefficient": 1e-3,
        "alpha_over_r": None,
        "segment_start": None,
        "shared_a": False,
        "diagonal": False,
        "drop_minor": False,
        "diagonal_penalty": 0.0,
        "orthogonal_penalty": 0.0,
    }
    later = frozenset(list(defaults)[-7:])  # from `alpha_over_r` on

    def step(self, settings: Settings) -> int:
        """N: every expert has the rank r / N."""
        return _whole(settings, "num_experts", self.defaults)

    def count_layer(self, settings: Settings, rank: int, out: int, inp: int) -> int:
        """A, B, router, threshold and diagonal; the frozen factors of the compensation are not trained."""
        rows = self._rows_of_a(settings, rank) + self._rows_of_router(settings)
        return rank * out + rows * inp + (rank if settings.get("diagonal") else 0)

    def router_layer(self, settings: Settings, out: int, inp: int) -> int:
        """One row an expert, and one for the threshold."""
        return self._rows_of_router(settings) * inp

    def count_published(self, settings: Settings, rank: int, about: Published) -> Fraction | None:
        """(18 H r + 9 H N) L on ViT-B; a threshold 9 H L more, a shared A 9 H (r - r / N) L less; none of KaSA."""
        if settings.get("diagonal"):
            return None
        rows = self._rows_of_a(settings, rank) + self._rows_of_router(settings)
        return about.depth * about.hidden * (rank * about.outputs + rows * about.inputs)

    def _rows_of_a(self, settings: Settings, rank: int) -> int:
        return rank // self.step(settings) if settings.get("shared_a") else rank

    def _rows_of_router(self, settings: Settings) -> int:
        experts = self.step(settings)
        return {"none": 0, "threshold": experts + 1}.get(settings.get("router", self.defaults["router"]), experts)

    def flops_layer(self, settings: Settings, rank: int, out: int, inp: int) -> int:
        """The trained factors and, where there are any, the frozen ones: all experts are computed, then masked."""
        own = self.defaults | dict(settings)
        kept = own["drop_minor"] or (own["residual"] and own["init"] != "zero")
        return 2 * (self.count_layer(settings, rank, out, inp) + (rank * (out + inp) if kept else 0))

    def peft_config(self, settings: dict[str, Any], pattern: str, seed: int) -> Any:
        """An `ExpertLoraConfig`."""
        from medbench.adapters import ExpertLoraConfig

        ratio = settings.pop("alpha_over_r", None)
        if ratio is not None:
            if settings.get("lora_alpha") is not None or settings.get("scaling") != "alpha":
                raise ValueError("alpha_over_r is read by scaling alpha, and stands for lora_alpha; give one of them")
            settings["lora_alpha"] = ratio * settings["r"]
        return ExpertLoraConfig(target_modules=pattern, seed=seed, **settings)


def _whole(settings: Settings, name: str, defaults: Settings) -> int:
    value = settings.get(name, defaults[name])
    if not isinstance(value, int) or value < 1:
        raise RequestError(f"adapter.{name}={value!r}: must be a whole number of at least 1")
    return value


TUNERS: dict[str, Tuner] = {
    "none": NoTuner(),
    "full": FullTuner(),
    "upcycle": UpcycleTuner(),
    "lora": LoraTuner(),
    "expert_lora": ExpertLoraTuner(),
}


@cache
def third_party() -> dict[str, Tuner]:
    """The tuners of installed packages, by the name of their entry point.

    Raises:
        RequestError: an entry point cannot be loaded, or is no subclass of `Tuner`.
    """
    found: dict[str, Tuner] = {}
    for entry in entry_points(group="medbench.methods"):
        if not entry.attr:
            continue  # a package with a folder of YAML recipes: the catalogue reads those
        try:
            loaded = entry.load()
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RequestError(f"entry point {entry.name} of {entry.group}: {entry.value} fails: {reason}") from error
        if not (isinstance(loaded, type) and issubclass(loaded, Tuner)):
            raise RequestError(f"entry point {entry.name} of {entry.group}: {entry.value} is no medbench.Tuner")
        if entry.name in TUNERS:
            raise RequestError(f"entry point {entry.name} of {entry.group}: medbench has a tuner of this name")
        tuner = found[entry.name] = loaded()
        tuner.package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    return found


def get_tuner(name: str) -> Tuner:
    """A tuner by name.

    Raises:
        RequestError: there is none; with near matches.
    """
    if name in TUNERS:
        return TUNERS[name]
    others = third_party()
    if name not in others:
        raise RequestError(f"unknown tuner {name!r}; {did_you_mean(name, [*TUNERS, *others])}")
    return others[name]
