"""The arithmetic of one routed adapter: N low-rank experts as one LoRA of rank N d.

Low-rank experts are not worth dispatching: a gather, or a loop over the experts, costs more than it saves.
All experts' A, the router and the frozen residual's A0 are stacked into one matrix, the gates are a mask on
the narrow result, and all B with B0 are a second matrix. No token is moved, nothing is read back to the
host.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from medbench.adapters.routing import gates


@dataclass(frozen=True)
class ExpertSpec:
    """What an adapter of one layer is, apart from its tensors.

    Attributes:
        num_experts: N.
        expert_rank: d.
        top_k: k.
        router: 'none', 'softmax', 'topk' or 'threshold'.
        scale: s.
        residual_scale: c, the factor of the frozen product B0 A0 that is taken off: s E[gate] for the experts' start,
            1 for dropped triplets, 0 without either.
    """

    num_experts: int
    expert_rank: int
    top_k: int
    router: str
    scale: float
    residual_scale: float

    @property
    def width(self) -> int:
        """Total rank N d."""
        return self.num_experts * self.expert_rank


@dataclass(frozen=True)
class ExpertTensors:
    """The tensors of one adapter of one layer.

    Attributes:
        a: [N, d, n]; [1, d, n] where the experts share it (HydraLoRA).
        b: [m, N, d], so that `b.reshape(m, N * d)` copies nothing.
        router: [N, n], or None when all gates are 1.
        threshold: [1, n], for router 'threshold' (AdaMoLE), else None.
        diagonal: [N, d] between B and A (KaSA's singular values), or None.
        a0: [N, d, n] and b0: [m, N, d], frozen, or both None where nothing is taken off.
    """

    a: torch.Tensor
    b: torch.Tensor
    router: torch.Tensor | None = None
    threshold: torch.Tensor | None = None
    diagonal: torch.Tensor | None = None
    a0: torch.Tensor | None = None
    b0: torch.Tensor | None = None


class Routing(NamedTuple):
    """What the router did with the tokens of a forward pass: logits, gates and chosen experts, all [..., N]."""

    logits: torch.Tensor
    weights: torch.Tensor
    chosen: torch.Tensor


def expert_delta(
    x: torch.Tensor, tensors: ExpertTensors, spec: ExpertSpec, dropped: torch.Tensor | None = None
) -> tuple[torch.Tensor, Routing | None]:
    """What the adapter adds to W0 x: s sum_i g_i(x) B_i diag_i A_i x - c B0 A0 x.

    Args:
        x: [..., n], of the adapter's dtype.
        tensors: The adapter's matrices.
        spec: Its constants.
        dropped: [..., n], x after dropout: only the experts read it, router and residual read x. None: no
            dropout, and then one matrix product serves all three.

    Returns:
        The addition [..., m], and what the router did (None without one).
    """
    down = {"experts": tensors.a.flatten(0, 1)}
    if tensors.router is not None:
        down["router"] = tensors.router
    if tensors.threshold is not None:
        down["threshold"] = tensors.threshold
    if tensors.a0 is not None:
        down["residual"] = tensors.a0.detach().flatten(0, 1)
    narrow: dict[str, torch.Tensor] = {}
    if dropped is None:
        narrow = _products(x, down)
    else:
        narrow["experts"] = F.linear(dropped, down.pop("experts"))
        if down:
            narrow |= _products(x, down)

    routing = None
    hidden = narrow["experts"]
    if tensors.router is not None:
        logits = narrow["router"]
        weights, chosen = gates(logits, spec.top_k, spec.router, narrow.get("threshold"))
        routing = Routing(logits, weights, chosen)
        # [..., N, d], or [..., 1, d] of a shared A: the gates make N of it
        by_expert = hidden.unflatten(-1, (len(tensors.a), spec.expert_rank))
        hidden = (by_expert * weights.to(hidden.dtype).unsqueeze(-1)).flatten(-2)
    if tensors.diagonal is not None:
        hidden = hidden * tensors.diagonal.flatten()

    # The scale goes onto the weights, [m, N d]; on the output it would be another pass over [tokens, m].
    up = [spec.scale * tensors.b.flatten(1)]
    parts = [hidden]
    if tensors.b0 is not None:
        up.append(-spec.residual_scale * tensors.b0.detach().flatten(1))
        parts.append(narrow["residual"])
    return F.linear(_stack(parts, -1), _stack(up, 1)), routing


def _products(x: torch.Tensor, down: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """X times several narrow matrices [rows, n], as one product."""
    stacked = F.linear(x, _stack(list(down.values()), 0))
    return dict(zip(down, stacked.split([len(part) for part in down.values()], dim=-1), strict=True))


def merged_weight(tensors: ExpertTensors, spec: ExpertSpec) -> torch.Tensor:
    """The constant [m, n] that an adapter *without a router* adds to W0: s B diag A - c B0 A0."""
    b = tensors.b.flatten(1)
    if tensors.diagonal is not None:
        b = b * tensors.diagonal.flatten()
    weight = spec.scale * b @ tensors.a.flatten(0, 1)
    if tensors.a0 is not None and tensors.b0 is not None:
        weight = weight - spec.residual_scale * tensors.b0.flatten(1) @ tensors.a0.flatten(0, 1)
    return weight


def _stack(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Concatenation, without the copy where there is one part only."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
