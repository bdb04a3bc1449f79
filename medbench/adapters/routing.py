"""Gates of a token over the experts, and the loss that keeps the experts evenly used.

Everything here is per token: no capacity, no batch statistics, so that what a token is routed to can never
depend on its neighbours or on padding.
"""

import torch


def chosen_experts(logits: torch.Tensor, top_k: int, router: str) -> torch.Tensor:
    """Which experts a token is routed to.

    Args:
        logits: [..., N] router logits z = W_z x.
        top_k: k; exactly k experts are chosen, also among equal logits.
        router: 'topk', or 'softmax' (all N).

    Returns:
        Boolean [..., N] with exactly k (or N) true entries per token; carries no gradient.
    """
    if router == "softmax":
        return torch.ones_like(logits, dtype=torch.bool)
    # Indices rather than a comparison with the k-th value: a tie would let k + 1 experts through.
    indices = logits.detach().topk(top_k, dim=-1).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, indices, True)


def gates(
    logits: torch.Tensor, top_k: int, router: str, threshold: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the experts for every token, and which of them it is routed to.

    'topk' and 'softmax': softmax over the chosen logits, exactly 0 elsewhere; softmax over all N, top-k, then
    renormalising gives the same numbers (arXiv 2604.01310, router). 'threshold' (AdaMoLE, arXiv 2405.00361):
    max(p_i - tau, 0) renormalised, p the softmax over all N and tau = sigmoid(threshold) / N; since the largest p_i is
    at least 1 / N > tau, some expert is always chosen.

    Args:
        logits: [..., N].
        top_k: k, only used by 'topk'.
        router: 'softmax' (k = N), 'topk' or 'threshold'.
        threshold: [..., 1], the logit of tau; only used by 'threshold'.

    Returns:
        [..., N] gates that sum to 1 over the experts, at least float32 (rounding a softmax to bfloat16 costs up to
        0.4 % of a gate), and boolean [..., N], which carries no gradient.

    Example:
        >>> gates(torch.tensor([0.0, 1.0, 0.0, 1.0]), top_k=2, router="topk")[0]
        tensor([0.0000, 0.5000, 0.0000, 0.5000])
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if router == "threshold":
        assert threshold is not None
        # A hair below 1 / N: where the sigmoid rounds to 1, the largest p_i must still stand above.
        tau = threshold.to(precise.dtype).sigmoid() * ((1 - 1e-6) / logits.shape[-1])
        above = (precise.softmax(dim=-1) - tau).relu()
        return above / above.sum(dim=-1, keepdim=True), above.detach() > 0
    chosen = chosen_experts(logits, top_k, router)
    return precise.masked_fill(~chosen, float("-inf")).softmax(dim=-1), chosen


def balance_loss(logits: torch.Tensor, chosen: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Load-balancing loss of one layer, L_b = N sum_i f_i P_i (arXiv 2604.01310).

    f_i is the share of routed slots that expert i received (sums to 1, no gradient), P_i the mean over
    tokens of the softmax over all N logits. 1 when balanced, N / k when all tokens take the same k experts
    with certainty.

    Args:
        logits: [..., N].
        chosen: Boolean [..., N], the experts that were routed to.
        token_mask: [...], non-zero where a token counts; None when all count.

    Returns:
        A scalar; 0 where no token counts.
    """
    num_experts = logits.shape[-1]
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    probabilities = probabilities.reshape(-1, num_experts)
    slots = chosen.detach().reshape(-1, num_experts).to(probabilities.dtype)
    if token_mask is not None:
        counts = (token_mask != 0).to(probabilities.device, probabilities.dtype).reshape(-1, 1)
        slots = slots * counts
        mean = (probabilities * counts).sum(dim=0) / counts.sum().clamp(min=1)
    else:
        mean = probabilities.mean(dim=0)
    share = slots.sum(dim=0) / slots.sum().clamp(min=1)
    return num_experts * (share * mean).sum()
