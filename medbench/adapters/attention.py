"""`nn.MultiheadAttention` as four linear layers, so that adapters can go onto it.

torch's module (open_clip's towers use it) holds the projections of queries, keys and values as one matrix and reads
its output layer's weight without ever calling it: there is nothing to wrap. Split, it computes the same to rounding.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from medbench.errors import RequestError


class SplitAttention(nn.Module):
    """Multi-head attention with `q_proj`, `k_proj`, `v_proj` and `out_proj` as layers of their own.

    Called as `nn.MultiheadAttention` is, and gives what it gives; only nested tensors are not taken. The projections
    see [B, T, features], also where `batch_first` is False.
    """

    # What torch's transformer layers ask an attention before they compute with its matrices, past its `forward`:
    # these answers keep them from it.
    in_proj_weight: ClassVar[None] = None
    in_proj_bias: ClassVar[None] = None
    _qkv_same_embed_dim: ClassVar[bool] = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Takes over an attention's parameters: its output layer's themselves, copies of the others.

        Raises:
            RequestError: it has `add_bias_kv` or `add_zero_attn`, or is of a subclass with a forward pass of its own.
        """
        super().__init__()
        _check(attention)
        self.embed_dim, self.kdim, self.vdim = attention.embed_dim, attention.kdim, attention.vdim
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        if attention._qkv_same_embed_dim:
            weights = _thirds(attention.in_proj_weight)
        else:
            own = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            weights = [nn.Parameter(weight.detach().clone(), weight.requires_grad) for weight in own]
        biases = [None] * 3 if attention.in_proj_bias is None else _thirds(attention.in_proj_bias)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.train(attention.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `nn.MultiheadAttention.forward`.

        Args:
            query: [B, T, E] with `batch_first`, else [T, B, E]; or [T, E].
            key: [B, S, kdim], [S, B, kdim] or [S, kdim].
            value: [B, S, vdim], [S, B, vdim] or [S, vdim].
            key_padding_mask: [B, S] or [S]; True hides a key, a number is added to its scores.
            need_weights: also return the attention weights.
            attn_mask: [T, S] or [B * heads, T, S]; True hides, a number is added to the score.
            average_attn_weights: the weights as a mean over the heads.
            is_causal: says that `attn_mask` is causal; the mask is what is used.

        Returns:
            The output, shaped as `query`, and the weights [B, T, S] ([B, heads, T, S] unless averaged; without B where
            `query` has none) or None.

        Raises:
            ValueError: a mask of another shape, or `is_causal` without one.
        """
        batched = query.ndim == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says that attn_mask is causal, and there is none")

        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-1, -2)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, E] to [B, heads, T, E / heads]."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(
        self, attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor
    ) -> torch.Tensor | None:
        """What is added to the scores [B, heads, T, S], or None."""
        batch, heads, length, source = *q.shape[:-1], k.shape[-2]
        total = None
        if attn_mask is not None:
            wanted = (length, source) if attn_mask.ndim == 2 else (batch * heads, length, source)
            if tuple(attn_mask.shape) != wanted:
                raise ValueError(f"attn_mask is {list(attn_mask.shape)}, expected {list(wanted)}")
            total = _added(attn_mask, q.dtype)
            total = total if attn_mask.ndim == 2 else total.unflatten(0, (batch, heads))
        if key_padding_mask is not None:
            if tuple(key_padding_mask.shape) != (batch, source):
                raise ValueError(f"key_padding_mask is {list(key_padding_mask.shape)}, expected {[batch, source]}")
            hidden = _added(key_padding_mask, q.dtype)[:, None, None, :]
            total = hidden.expand(-1, heads, length, -1) if total is None else total + hidden
        return total


def split_attention(model: nn.Module) -> list[str]:
    """Replaces every `nn.MultiheadAttention` in a model by a `SplitAttention`, in place.

    The model then computes the same to rounding, and its state dict has other names (`in_proj_weight` becomes
    `q_proj.weight`, `k_proj.weight` and `v_proj.weight`): load a checkpoint first, split afterwards. An attention that
    several places share stays shared; a second call finds nothing to do.

    Args:
        model: e.g. an open_clip model.

    Returns:
        The names of the attentions that were replaced.

    Raises:
        RequestError: the model itself is one, or one cannot be split; then the model is unchanged.

    Example:
        >>> tower = nn.Sequential(nn.TransformerEncoderLayer(d_model=8, nhead=2))
        >>> split_attention(tower)
        ['0.self_attn']
        >>> tower.get_submodule("0.self_attn.q_proj")
        Linear(in_features=8, out_features=8, bias=True)
    """
    if isinstance(model, nn.MultiheadAttention):
        raise RequestError("the model is itself an nn.MultiheadAttention; use SplitAttention(model)")
    modules = list(model.named_modules(remove_duplicate=False))
    places = [(name, module) for name, module in modules if isinstance(module, nn.MultiheadAttention)]
    for name, attention in places:
        try:
            _check(attention)
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from None
    split: dict[int, SplitAttention] = {}
    for name, attention in places:
        if id(attention) not in split:
            split[id(attention)] = SplitAttention(attention)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, split[id(attention)])
    if places:
        for _, module in modules:
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False  # its shortcut around padding reads the packed matrices
    return [name for name, _ in places]


def _check(attention: nn.MultiheadAttention) -> None:
    if type(attention).forward is not nn.MultiheadAttention.forward:
        raise RequestError(f"{type(attention).__name__} has a forward pass of its own and cannot be split")
    for setting, used in {
        "add_bias_kv": attention.bias_k is not None or attention.bias_v is not None,
        "add_zero_attn": attention.add_zero_attn,
    }.items():
        if used:
            raise RequestError(f"an nn.MultiheadAttention with {setting}=True cannot be split into linear layers")


def _thirds(packed: nn.Parameter) -> list[nn.Parameter]:
    """Copies: a view would keep the storage of all three, and pickle it each time."""
    return [nn.Parameter(part.clone(), packed.requires_grad) for part in packed.detach().chunk(3)]


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer of these very parameters."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight, linear.bias = weight, bias  # type: ignore[assignment]
    return linear


def _added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask as what is added to the scores: minus infinity where it is True."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)
