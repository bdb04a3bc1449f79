"""The arithmetic of one routed adapter: N low-rank experts as one LoRA of rank N d.

Low-rank experts are not worth dispatching: a gather, or a loop over the experts, costs more than it saves.
All experts' A, the router and the frozen residual's A0 are stacked into one matrix, the gates are a mask on
the narrow result, and all B with B0 are a second matrix. No token is moved, nothing is read back to the
host.
"""

from dataclasses import dataclass

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
        router: 'none', 'softmax' or 'topk'.
        scale: s.
        residual_scale: c = s E[gate], the factor of the frozen product B0 A0; 0 without compensation.
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
        a: [N, d, n].
        b: [m, N, d], so that `b.reshape(m, N * d)` copies nothing.
        router: [N, n], or None when all gates are 1.
        a0: [N, d, n] and b0: [m, N, d], frozen, or both None without compensation.
    """

    a: torch.Tensor
    b: torch.Tensor
    router: torch.Tensor | None
    a0: torch.Tensor | None
    b0: torch.Tensor | None


def expert_delta(
    x: torch.Tensor, tensors: ExpertTensors, spec: ExpertSpec, dropped: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the adapter adds to W0 x: s sum_i g_i(x) B_i A_i x - c B0 A0 x.

    Args:
        x: [..., n], of the adapter's dtype.
        tensors: The adapter's matrices.
        spec: Its constants.
        dropped: [..., n], x after dropout: only the experts read it, router and residual read x. None: no
            dropout, and then one matrix product serves all three.

    Returns:
        The addition [..., m] and the router logits [..., N] (None without a router).
    """
    down = [tensors.a.flatten(0, 1)]
    if tensors.router is not None:
        down.append(tensors.router)
    if tensors.a0 is not None:
        down.append(tensors.a0.detach().flatten(0, 1))

    if dropped is None:
        narrow = list(F.linear(x, _stack(down, 0)).split([part.shape[0] for part in down], dim=-1))
    else:
        narrow = [F.linear(dropped, down[0])]
        if len(down) > 1:
            rest = F.linear(x, _stack(down[1:], 0))
            narrow.extend(rest.split([part.shape[0] for part in down[1:]], dim=-1))

    logits = narrow.pop(1) if tensors.router is not None else None
    if logits is not None:
        weights = gates(logits, spec.top_k, spec.router).to(narrow[0].dtype)
        by_expert = narrow[0].unflatten(-1, (spec.num_experts, spec.expert_rank))
        narrow[0] = (by_expert * weights.unsqueeze(-1)).flatten(-2)

    # The scale goes onto the weights, [m, N d]; on the output it would be another pass over [tokens, m].
    up = [spec.scale * tensors.b.flatten(1)]
    if tensors.b0 is not None:
        up.append(-spec.residual_scale * tensors.b0.detach().flatten(1))
    return F.linear(_stack(narrow, -1), _stack(up, 1)), logits


def merged_weight(tensors: ExpertTensors, spec: ExpertSpec) -> torch.Tensor:
    """The constant [m, n] that an adapter *without a router* adds to W0: s B A - c B0 A0."""
    weight = spec.scale * tensors.b.flatten(1) @ tensors.a.flatten(0, 1)
    if tensors.a0 is not None and tensors.b0 is not None:
        weight = weight - spec.residual_scale * tensors.b0.flatten(1) @ tensors.a0.flatten(0, 1)
    return weight


def _stack(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Concatenation, without the copy where there is one part only."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
