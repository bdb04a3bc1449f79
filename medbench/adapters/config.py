"""The configuration of the routed spectral adapter, as `peft` stores it in `adapter_config.json`.

One configuration spans the whole family: where the experts start in the spectrum (`init`), how tokens choose
among them (`router`), how loudly they speak (`scaling`), and whether the mean of what they add at the start
is taken off again (`residual`). Paper: arXiv 2604.01310, with arXiv 2502.16894 (GOAT) as its ancestor.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.utils import PeftType

from medbench.errors import did_you_mean

PEFT_NAME = "expert_lora"
PREFIX = "expert_"
INITS = ("spectral", "principal", "minor", "random", "segment_end", "zero")
ROUTERS = ("none", "softmax", "topk", "threshold")
SCALINGS = ("consistent", "alpha")
SCALING_RANKS = ("total", "expert")


@dataclass
class ExpertLoraConfig(PeftConfig):
    """Configuration of `ExpertLoraModel`: N low-rank experts per linear layer, routed per token.

    The defaults are the paper's: 8 experts of which 2 are routed, total rank 32, spectral segments, damping
    10.

    Raises:
        ValueError: A name is unknown, or the numbers cannot be built (N must divide r, k <= N, ...).
    """

    r: int = field(default=32, metadata={"help": "Total rank; every expert has rank r / num_experts."})
    num_experts: int = field(default=8, metadata={"help": "Number of experts N, also the number of segments."})
    top_k: int = field(default=2, metadata={"help": "Experts a token is routed to; only used by router 'topk'."})
    init: str = field(
        default="spectral",
        metadata={
            "help": "Which singular triplets of the weight an expert starts from: 'spectral' (the first of "
            "its segment), 'segment_end' (the last), 'principal', 'minor', 'random' (drawn from `seed`), "
            "or 'zero' (A Kaiming-uniform, B = 0)."
        },
    )
    router: str = field(
        default="topk",
        metadata={
            "help": "'none' (all gates 1), 'softmax' (dense), 'topk' (softmax over the k largest logits) or "
            "'threshold' (experts whose probability exceeds one learned for each token, AdaMoLE)."
        },
    )
    scaling: str = field(
        default="consistent",
        metadata={"help": "'consistent': s = sqrt(3 n eta / r'); 'alpha': s = lora_alpha / r."},
    )
    scaling_rank: str = field(
        default="total",
        metadata={"help": "The r' of 'consistent' scaling: the 'total' rank r or the 'expert' rank r / N."},
    )
    eta: float = field(
        default=1.0,
        metadata={"help": "Learning rate of full fine-tuning over that of the adapter ('consistent' scaling)."},
    )
    rho: float = field(default=10.0, metadata={"help": "Damping: experts start at 1 / rho of their triplets."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Used by scaling 'alpha'; None means 2 r."})
    residual: bool = field(
        default=True,
        metadata={"help": "Take off the expected initial contribution of the experts (ignored by init 'zero')."},
    )
    segment_start: float | None = field(
        default=None,
        metadata={
            "help": "Start of the segment of a single expert (num_experts = 1), from 0, the largest singular values, "
            "to 1, the smallest; takes the place of `init`'s choice."
        },
    )
    shared_a: bool = field(
        default=False,
        metadata={"help": "One A of rank r / num_experts for all experts (HydraLoRA); needs init 'zero', a router."},
    )
    diagonal: bool = field(
        default=False,
        metadata={"help": "Train a diagonal between B and A, drawn from N(0, 1) (KaSA); needs init 'zero'."},
    )
    drop_minor: bool = field(
        default=False,
        metadata={"help": "Take off the weight's r smallest singular triplets (KaSA); needs init 'zero'."},
    )
    diagonal_penalty: float = field(
        default=0.0, metadata={"help": "Coefficient of `penalty()`'s sum of squares of the diagonals (KaSA's beta)."}
    )
    orthogonal_penalty: float = field(
        default=0.0,
        metadata={"help": "Coefficient of `penalty()`'s |B'B - I|_F + |AA' - I|_F (KaSA's gamma)."},
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the experts' input, not on the router's."})
    balance_coefficient: float = field(default=1e-3, metadata={"help": "Coefficient of `penalty()`'s balance loss."})
    seed: int = field(default=0, metadata={"help": "Seed of the segment starts of init 'random', nothing else."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "Names (suffixes), a regular expression (a string), or 'all-linear', as in peft's LoRA."},
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names (suffixes) or a regular expression of modules to leave alone."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None,
        metadata={"help": "Only adapt the layers with these indices (needs a list of target names)."},
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that `layers_to_transform` counts in."}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Further modules that are trained in full and saved with the adapter."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(PEFT_NAME.upper())
        # JSON knows no sets, peft matches faster with them: the same normalisation as in its own tuners.
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        self._check_names()
        self._check_numbers()
        self._check_combinations()

    def _check_names(self) -> None:
        known_names = {
            "init": INITS,
            "router": ROUTERS,
            "scaling": SCALINGS,
            "scaling_rank": SCALING_RANKS,
        }
        for setting, known in known_names.items():
            value = getattr(self, setting)
            if value not in known:
                raise ValueError(f"{setting}={value!r} is unknown; {did_you_mean(str(value), known)}")

    def _check_numbers(self) -> None:
        for setting in ("r", "num_experts", "top_k"):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{setting} must be a whole number of at least 1, got {value!r}")
        if self.r < self.num_experts:
            raise ValueError(f"r={self.r} leaves some of num_experts={self.num_experts} without a rank; r >= N")
        if self.r % self.num_experts:
            raise ValueError(f"num_experts={self.num_experts} must divide r={self.r}")
        if self.router == "topk" and self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} is more than num_experts={self.num_experts}")
        for setting in ("rho", "eta", "lora_alpha"):
            value = getattr(self, setting)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{setting} must be positive and finite, got {value!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        for setting in ("balance_coefficient", "diagonal_penalty", "orthogonal_penalty"):
            if not 0 <= getattr(self, setting) < math.inf:
                raise ValueError(f"{setting} must not be negative, got {getattr(self, setting)!r}")

    def _check_combinations(self) -> None:
        for setting in ("shared_a", "diagonal", "drop_minor"):
            if getattr(self, setting) and self.init != "zero":
                raise ValueError(f"{setting} needs init 'zero', got {self.init!r}")
        if self.shared_a and self.router == "none":
            raise ValueError("shared_a without a router is one expert; choose a router, or num_experts=1")
        if self.diagonal_penalty and not self.diagonal:
            raise ValueError("diagonal_penalty needs diagonal=True")
        if self.orthogonal_penalty and self.num_experts > 1:
            raise ValueError("orthogonal_penalty is defined for one expert; num_experts=1")
        if self.segment_start is not None:
            if not 0 <= self.segment_start <= 1:
                raise ValueError(f"segment_start must lie in [0, 1], got {self.segment_start!r}")
            if self.num_experts > 1 or self.init == "zero":
                raise ValueError("segment_start places one expert: num_experts=1 and an init from the spectrum")

    @property
    def expert_rank(self) -> int:
        """Rank d = r / N of one expert."""
        return self.r // self.num_experts

    @property
    def compensated(self) -> bool:
        """Whether frozen factors are kept: of the experts' expected start, or of the dropped triplets."""
        return self.drop_minor or (self.residual and self.init != "zero")

    def scale(self, in_features: int) -> float:
        """The factor s in front of every expert of a layer with `in_features` = n inputs.

        'consistent' is s = sqrt(3 n eta / r'), where the equivalent gradient s^2 (B B^T g + g A^T A) equals
        eta g in expectation over A at B = 0 (GOAT, arXiv 2502.16894, its scaling theorem). 'alpha' is the
        usual lora_alpha / r with r the *total* rank.
        """
        if self.scaling == "alpha":
            return (2 * self.r if self.lora_alpha is None else self.lora_alpha) / self.r
        rank = self.r if self.scaling_rank == "total" else self.expert_rank
        return math.sqrt(3 * in_features * self.eta / rank)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data; sets as sorted lists, so that equal configurations are equal bytes."""
        return {key: sorted(value) if isinstance(value, set) else value for key, value in asdict(self).items()}

    # Not a field, hence neither saved nor copied by `dataclasses.replace`.
    _weights_follow = False

    @property
    def weights_follow(self) -> bool:
        """Whether a checkpoint is about to fill this adapter, so that nothing is to be initialised."""
        return self._weights_follow

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "ExpertLoraConfig":
        """Read the configuration of a saved adapter, as `PeftModel.from_pretrained` does before its weights.

        Layers built from it wait for the stored factors instead of decomposing every weight again. To start a
        *new* adapter from a stored configuration use `PeftConfig.from_pretrained`, or `dataclasses.replace`.
        """
        config: ExpertLoraConfig = super().from_pretrained(*args, **kwargs)
        config._weights_follow = True
        return config
