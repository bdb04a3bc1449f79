"""A linear layer with routed low-rank experts beside it.

y = W0 x + s sum_i gate_i(x) B_i A_i x - W_res x (arXiv 2604.01310, forward pass), where
W_res = s E[gate] sum_i B_i A_i *at initialisation* is kept as frozen factors. The base weight is never
changed, so disabling the adapter gives the base back bit for bit, and a checkpoint holds everything that
its output depends on.
"""

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from medbench.adapters.config import ExpertLoraConfig
from medbench.adapters.log import RoutingLog
from medbench.adapters.mixture import ExpertSpec, ExpertTensors, expert_delta, merged_weight
from medbench.adapters.spectrum import balanced_factors, segment_factors, segment_starts
from medbench.errors import RequestError


class FrozenParameterDict(nn.ParameterDict):
    """Parameters that never require a gradient.

    peft re-wraps a tensor in `nn.Parameter` whenever it changes its dtype or device, and that turns
    gradients on; here whatever is put in is frozen.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        """Store `value` as a parameter without gradient."""
        super().__setitem__(key, nn.Parameter(value.detach(), requires_grad=False))


class ExpertLoraLayer(BaseTunerLayer):
    """The adapter side of a wrapped linear layer; several adapters by name."""

    adapter_layer_names: tuple[str, ...] = (
        "expert_A",
        "expert_B",
        "expert_router",
        "expert_threshold",
        "expert_diagonal",
    )
    # The frozen factors are listed here, where peft never looks for something to train.
    other_param_names: tuple[str, ...] = ("expert_A0", "expert_B0", "expert_dropout", "expert_spec")

    def __init__(self, base_layer: nn.Module, name: str, log: RoutingLog) -> None:
        linear = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        if not isinstance(linear, nn.Linear):
            raise RequestError(f"only nn.Linear can be adapted, {name} is {type(linear).__name__}")
        self.base_layer = base_layer
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.name = name
        self.log = log
        self.expert_A = nn.ParameterDict()
        self.expert_B = nn.ParameterDict()
        self.expert_router = nn.ParameterDict()
        self.expert_threshold = nn.ParameterDict()
        self.expert_diagonal = nn.ParameterDict()
        self.expert_A0 = FrozenParameterDict()
        self.expert_B0 = FrozenParameterDict()
        self.expert_dropout = nn.ModuleDict()
        self.expert_spec: dict[str, ExpertSpec] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged_weight: torch.Tensor | None = None

    def update_layer(self, adapter_name: str, config: ExpertLoraConfig) -> None:
        """Add an adapter and initialise it, unless its tensors are about to come from a checkpoint.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.

        Raises:
            RequestError: The layer has fewer singular values than the total rank, or no plain weight.
        """
        m, n, experts, d = self.out_features, self.in_features, config.num_experts, config.expert_rank
        scale = config.scale(n)
        expected_gate = 1.0 if config.router == "none" else 1 / experts
        kept = 1.0 if config.drop_minor else scale * expected_gate
        self.expert_spec[adapter_name] = ExpertSpec(
            num_experts=experts,
            expert_rank=d,
            top_k=config.top_k,
            router=config.router,
            scale=scale,
            residual_scale=kept if config.compensated else 0.0,
        )
        self.expert_A[adapter_name] = self._unset(1 if config.shared_a else experts, d, n)
        self.expert_B[adapter_name] = self._unset(m, experts, d)
        if config.router != "none":
            self.expert_router[adapter_name] = self._unset(experts, n)
        if config.router == "threshold":
            self.expert_threshold[adapter_name] = self._unset(1, n)
        if config.diagonal:
            self.expert_diagonal[adapter_name] = self._unset(experts, d)
        if config.compensated:
            self.expert_A0[adapter_name] = self._unset(experts, d, n)
            self.expert_B0[adapter_name] = self._unset(m, experts, d)
        self.expert_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

        # On the meta device (low_cpu_mem_usage) there is nothing to fill, and a stored adapter is never
        # recomputed.
        on_meta = self.expert_A[adapter_name].is_meta or self._base_weight().is_meta
        if not (on_meta or config.weights_follow):
            self.reset_adapter_parameters(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _unset(self, *shape: int) -> nn.Parameter:
        # Float32 next to a bfloat16 base, as peft does by default, and without its detour through bfloat16. NaN until
        # filled: a tensor that a checkpoint fails to provide can never pass for an initialised one.
        dtype = torch.promote_types(self._base_dtype(), torch.float32)
        return nn.Parameter(torch.full(shape, math.nan, dtype=dtype))

    @torch.no_grad()
    def reset_adapter_parameters(self, adapter_name: str, config: ExpertLoraConfig) -> None:
        """Draw or compute the starting point of an adapter, in place."""
        a, b = self.expert_A[adapter_name], self.expert_B[adapter_name]
        spec = self.expert_spec[adapter_name]
        if config.init == "zero":
            # One draw over [rank, n]: the bound depends on n only, N = 1 is exactly peft's LoRA.
            nn.init.kaiming_uniform_(a.view(-1, self.in_features), a=math.sqrt(5))
            nn.init.zeros_(b)
        else:
            start_a, start_b = self._segments(config, config.init, spec.scale, config.rho)
            a.copy_(start_a)
            b.copy_(start_b)
        if config.compensated:
            kept_a, kept_b = self._segments(config, "minor", 1.0, 1.0) if config.drop_minor else (a, b)
            self.expert_A0[adapter_name].copy_(kept_a)
            self.expert_B0[adapter_name].copy_(kept_b)
        for holder in (self.expert_router, self.expert_threshold):
            if adapter_name in holder:
                nn.init.kaiming_uniform_(holder[adapter_name], a=math.sqrt(5))
        if adapter_name in self.expert_diagonal:
            nn.init.normal_(self.expert_diagonal[adapter_name])

    def _segments(
        self, config: ExpertLoraConfig, init: str, scale: float, rho: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors [N, d, n] and [m, N, d] of the segments of the weight that `init` chooses."""
        weight = self._base_weight() if self._unmerged_weight is None else self._unmerged_weight
        shape = f"{self.out_features} x {self.in_features}"
        if tuple(weight.shape) != (self.out_features, self.in_features):
            raise RequestError(f"the segments of layer {shape} need a plain weight; this one is packed (quantised)")
        h, experts, d = min(weight.shape), config.num_experts, config.expert_rank
        if config.r > h:
            raise RequestError(
                f"total rank {config.r} is more than a layer of shape {shape} has singular values ({h}); "
                "lower r, or use exclude_modules"
            )
        if config.segment_start is not None:
            starts = [round(config.segment_start * (h - d))]
        else:
            starts = segment_starts(init, h, experts, d, config.seed)
        return balanced_factors(segment_factors(weight, starts, d), scale, rho)

    def tensors(self, adapter_name: str) -> ExpertTensors:
        """The tensors of one adapter; None where it has none of a kind."""
        return ExpertTensors(
            a=self.expert_A[adapter_name],
            b=self.expert_B[adapter_name],
            router=_get(self.expert_router, adapter_name),
            threshold=_get(self.expert_threshold, adapter_name),
            diagonal=_get(self.expert_diagonal, adapter_name),
            a0=_get(self.expert_A0, adapter_name),
            b0=_get(self.expert_B0, adapter_name),
        )

    def penalty(self, adapter_name: str, config: ExpertLoraConfig) -> torch.Tensor | None:
        """KaSA's regularisers of one adapter (arXiv 2412.06071, eq. 9-11), or None where it has none."""
        total = None
        if config.diagonal_penalty:
            total = config.diagonal_penalty * self.expert_diagonal[adapter_name].square().sum()
        if config.orthogonal_penalty:
            a, b = self.expert_A[adapter_name].flatten(0, 1), self.expert_B[adapter_name].flatten(1)
            eye = torch.eye(len(a), dtype=a.dtype, device=a.device)
            off = torch.linalg.norm(b.T @ b - eye) + torch.linalg.norm(a @ a.T - eye)
            total = config.orthogonal_penalty * off + (0.0 if total is None else total)
        return total

    def unfilled(self, adapter_name: str) -> list[str]:
        """Names of the tensors that were neither initialised nor loaded (still on meta, or still NaN)."""
        missing = []
        for attribute in (*self.adapter_layer_names, "expert_A0", "expert_B0"):
            holder = getattr(self, attribute)
            if adapter_name in holder:
                first = holder[adapter_name].detach().flatten()[0]
                if first.is_meta or bool(first.isnan()):
                    missing.append(f"{self.name}.{attribute}")
        return missing

    def place(self, adapter_name: str, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Move or cast the tensors of one adapter; trained ones stay trained, frozen ones frozen."""
        for attribute in (*self.adapter_layer_names, "expert_A0", "expert_B0"):
            holder = getattr(self, attribute)
            if adapter_name not in holder or holder[adapter_name].is_meta:
                continue
            old = holder[adapter_name]
            new = old.detach().to(device=device, dtype=dtype)
            if new.dtype != old.dtype or new.device != old.device:
                holder[adapter_name] = nn.Parameter(new, requires_grad=old.requires_grad)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # Only the device. peft's version also casts to the base's dtype, which would round stored float32
        # factors.
        self.place(adapter_name, device or self._base_weight().device, None)

    def _base_dtype(self) -> torch.dtype:
        dtype = self._base_weight().dtype
        return dtype if dtype.is_floating_point else torch.float32

    def _base_weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        return weight


class Linear(nn.Module, ExpertLoraLayer):
    """An `nn.Linear` and its adapters."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: ExpertLoraConfig, name: str, log: RoutingLog
    ) -> None:
        super().__init__()
        ExpertLoraLayer.__init__(self, base_layer, name, log)
        self._active_adapter: str | list[str] = adapter_name
        self.update_layer(adapter_name, config)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """W0 x + bias plus what the active adapters add.

        Args:
            x: [..., n].
            *args: Passed on to the base layer.
            **kwargs: Passed on to the base layer.

        Returns:
            [..., m], of the base layer's output dtype.
        """
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        dtype = result.dtype
        for adapter_name in self.active_adapters:
            if adapter_name in self.expert_spec:
                result = result + self._addition(x, adapter_name)
        return result.to(dtype)

    def _addition(self, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        tensors, spec = self.tensors(adapter_name), self.expert_spec[adapter_name]
        x = self._cast_input_dtype(x, tensors.a.dtype)
        dropout = self.expert_dropout[adapter_name]
        dropped = dropout(x) if self.training and isinstance(dropout, nn.Dropout) else None
        addition, routing = expert_delta(x, tensors, spec, dropped)
        if routing is not None:
            self.log.record((self.name, adapter_name), *routing, training=self.training)
        return addition

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters without a router to the base weight; a copy of the weight is kept for `unmerge`.

        Args:
            safe_merge: Refuse a result that is not finite.
            adapter_names: The adapters, by default the active ones.

        Raises:
            RequestError: An adapter is routed.
            ValueError: `safe_merge` found a value that is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.expert_spec]
        for adapter_name in names:
            refuse_routed(adapter_name, self.expert_spec[adapter_name].router)
        for adapter_name in names:
            weight = self._base_weight()
            with torch.no_grad():
                delta = merged_weight(self.tensors(adapter_name), self.expert_spec[adapter_name])
                merged = (weight.to(delta.dtype) + delta).to(weight.dtype)
            if safe_merge and not bool(torch.isfinite(merged).all()):
                raise ValueError(f"merging adapter {adapter_name!r} into {self.name} gives values that are not finite")
            if self._unmerged_weight is None:
                self._unmerged_weight = weight.data
            weight.data = merged
            self.merged_adapters.append(adapter_name)

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        if self._unmerged_weight is not None:
            weight = self._base_weight()
            weight.data = self._unmerged_weight.to(weight.device)
            self._unmerged_weight = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return f"medbench.{super().__repr__()}"


def _get(holder: nn.ParameterDict, adapter_name: str) -> torch.Tensor | None:
    return holder.get(adapter_name)


def refuse_routed(adapter_name: str, router: str) -> None:
    """Raise a `RequestError` if an adapter with this router cannot be merged into a weight."""
    if router != "none":
        raise RequestError(
            f"adapter {adapter_name!r} cannot be merged: its router ({router}) weighs the experts "
            "differently for every token, and no single weight matrix does that; run it unmerged"
        )
