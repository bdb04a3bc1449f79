"""What the routed layers of one model share while it runs: which tokens count, and what the routers did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from medbench.adapters.routing import balance_loss

#: Layer name and adapter name.
Key = tuple[str, str]


@dataclass
class ExpertUse:
    """How the tokens of one layer used its N experts.

    Attributes:
        tokens: how many tokens were counted.
        slots: [N], to how many of them each expert was routed (k / N of the tokens when balanced), int64.
        mass: [N], the sum of its gates over them, float64.
    """

    tokens: torch.Tensor
    slots: torch.Tensor
    mass: torch.Tensor


@dataclass
class RoutingLog:
    """Shared by the layers of one model during a forward pass.

    Attributes:
        token_mask: [B, T], non-zero where a token is no padding; None when unknown.
        continues: whether the model goes on with a generation: its cache holds tokens, or its mask has more than it
            is given (`generate` leaves the mask out where nothing is padded).
        losses: L_b of the last training-mode forward, by layer and adapter.
        use: expert use by layer and adapter while it is collected, else None.
    """

    token_mask: torch.Tensor | None = None
    continues: bool = False
    losses: dict[Key, torch.Tensor] = field(default_factory=dict)
    use: dict[Key, ExpertUse] | None = None

    def __reduce__(self) -> tuple[type[RoutingLog], tuple[()]]:
        """Copied and pickled models start with an empty log: a loss holds a graph, which cannot be copied."""
        return RoutingLog, ()

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook (`with_kwargs=True`) of the whole model: the last forward's losses are forgotten."""
        self.losses.clear()
        mask = kwargs.get("attention_mask")
        self.token_mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        self.continues = self._holds_tokens(kwargs.get("past_key_values")) or self._lacks_tokens(args, kwargs)

    @staticmethod
    def _holds_tokens(cache: Any) -> bool:
        length = getattr(cache, "get_seq_length", None)
        return length is not None and int(length()) > 0

    def _lacks_tokens(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        # Of the model's own input, not of a layer's: a vision tower's patches can be fewer than the tokens.
        names = [name for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None]
        given = kwargs[names[0]] if names else next(iter(args), None)
        length = given.shape[1] if isinstance(given, torch.Tensor) and given.ndim > 1 else None
        return self.token_mask is not None and length is not None and length < self.token_mask.shape[1]

    def record(
        self, key: Key, logits: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, training: bool
    ) -> None:
        """Notes what a layer's router did with the tokens of this forward.

        Args:
            key: the layer and its adapter.
            logits: [..., N].
            weights: [..., N], the gates.
            chosen: boolean [..., N].
            training: whether the layer is in training mode.
        """
        if training and torch.is_grad_enabled():
            self.losses[key] = balance_loss(logits, chosen, self._mask_of(logits))
        if self.use is not None and not training and not self.continues:
            self._count(key, weights.detach(), chosen)

    def _mask_of(self, logits: torch.Tensor) -> torch.Tensor | None:
        # Tokens of another kind than the mask's (a vision tower's patches): all of them count.
        mask = self.token_mask
        return mask if mask is not None and mask.shape == logits.shape[:-1] else None

    def _count(self, key: Key, weights: torch.Tensor, chosen: torch.Tensor) -> None:
        assert self.use is not None
        mask, experts = self._mask_of(weights), weights.shape[-1]
        counts = torch.ones(weights.shape[:-1]) if mask is None else (mask != 0).float()
        counts = counts.to(weights.device)
        counts, weights, chosen = counts.reshape(-1), weights.reshape(-1, experts), chosen.reshape(-1, experts)
        found = ExpertUse(
            counts.sum().long(), (counts @ chosen.to(counts.dtype)).long(), (counts @ weights.float()).double()
        )
        before = self.use.get(key)
        if before is not None:
            found = ExpertUse(before.tokens + found.tokens, before.slots + found.slots, before.mass + found.mass)
        self.use[key] = found

    def balance(self, adapter: str | None = None) -> torch.Tensor | None:
        """Mean over the layers of the last forward's L_b, of one adapter or of all; None where there is none."""
        losses = [loss for (_, name), loss in self.losses.items() if adapter in (None, name)]
        return torch.stack([loss.to(losses[0].device) for loss in losses]).mean() if losses else None

    def take_balance(self) -> torch.Tensor | float:
        """`balance()`, or 0 where there is none; the losses are then forgotten."""
        loss = self.balance()
        self.losses.clear()
        return 0.0 if loss is None else loss


@contextmanager
def collected_use(log: RoutingLog) -> Iterator[dict[Key, ExpertUse]]:
    """Collects expert use in evaluation mode, over every forward inside; padding and generated tokens do not count."""
    before, log.use = log.use, {}
    # Of a forward before: a tower may now run without the whole model, and so without a mask.
    log.token_mask, log.continues = None, False
    try:
        yield log.use
    finally:
        log.use = before


@contextmanager
def uncollected(log: RoutingLog) -> Iterator[None]:
    """Leaves the forwards inside out of what is collected."""
    before, log.use = log.use, None
    try:
        yield
    finally:
        log.use = before
