"""Upcycling: linear layers become mixtures of N full copies with a router, and everything is trained.

The upper bound of the comparison (`full_ft_moe`), after Komatsuzaki et al. 2022 (arXiv 2212.05055) and as GOAT
(arXiv 2502.16894) uses it. Experts here are as wide as the layer itself, so tokens are dispatched: only the chosen
experts are computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from medbench.adapters.load import first_names, stored_shapes
from medbench.adapters.log import RoutingLog
from medbench.adapters.routing import gates
from medbench.errors import RequestError, WorkError, did_you_mean
from medbench.files import read_json, write_atomic, write_json

WEIGHTS = "upcycled.safetensors"
ABOUT = "upcycle.json"
FORMAT = 1


class UpcycledLinear(nn.Module):
    """N copies of a linear layer and a top-k router: y = sum_i g_i(x) W_i x + b.

    The gates are a softmax over the k largest of the router's logits, token by token. It is trained, and in training
    mode, where the linear was; `weight` keeps its name, since models ask it for dtype and device.

    Attributes:
        weight: [N, m, n], the experts.
        bias: [m], shared by them, or None.
        router: [N, n], without a bias, Kaiming-uniform (a = sqrt 5) as a linear layer's.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, linear: nn.Linear, num_experts: int, top_k: int, name: str, log: RoutingLog, fill: bool = True
    ) -> None:
        """Copies a linear; the router is drawn from torch's global generator, on the CPU.

        Args:
            linear: its bias is taken over, its weight is copied.
            num_experts: N.
            top_k: k.
            name: of the layer, in the log.
            log: shared with the other layers of the model.
            fill: leave weight and router without values, and draw nothing, where False.
        """
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.num_experts, self.top_k, self.name, self.log = num_experts, top_k, name, log
        base = linear.weight.detach()
        precise = torch.promote_types(base.dtype, torch.float32)
        router = torch.empty(num_experts, self.in_features, dtype=precise, device="cpu")
        if fill and not base.is_meta:
            nn.init.kaiming_uniform_(router, a=math.sqrt(5))
        copies = base.repeat(num_experts, 1, 1) if fill else base.new_empty(num_experts, *base.shape)
        trained = linear.weight.requires_grad
        self.weight = nn.Parameter(copies, requires_grad=trained)
        self.router = nn.Parameter(router.to(base), requires_grad=trained)
        self.register_parameter("bias", linear.bias)
        self.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The gated sum of the chosen experts.

        Args:
            x: [..., n].

        Returns:
            [..., m], of the dtype that the linear would give.
        """
        # The router in float32 also under autocast: a rounded logit is another expert (arXiv 2101.03961, section 2.4).
        precise = torch.promote_types(self.router.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(precise), self.router.to(precise))
        weights, chosen = gates(logits, self.top_k, "topk")
        self.log.record((self.name, "default"), logits, weights, chosen, self.training)
        tokens, per_token = x.reshape(-1, self.in_features), (-1, self.num_experts)
        mixed = self._mixed(tokens, weights.reshape(per_token), chosen.reshape(per_token))
        return mixed.reshape(*x.shape[:-1], self.out_features)

    def _mixed(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """[T, m] of tokens [T, n], their gates and their experts [T, N]; summed in the gates' precision."""
        total = weights.new_zeros(len(x), self.out_features)
        dtype = x.dtype
        rows = chosen.t().nonzero()[:, 1].split(chosen.sum(0).tolist())
        # `unbind`, not indexing: one gradient for the whole parameter, with zeros for the experts without tokens.
        for own, weight, gate in zip(rows, self.weight.unbind(0), weights.unbind(1), strict=True):
            if len(own) == 0 and len(x) > 0:
                continue
            part = F.linear(x.index_select(0, own), weight)
            dtype = part.dtype
            # The rows of one expert are distinct and the experts follow in order: no sum depends on luck.
            total.index_add_(0, own, part.to(total.dtype) * gate.index_select(0, own).unsqueeze(-1))
        return (total if self.bias is None else total + self.bias).to(dtype)

    def extra_repr(self) -> str:
        """Its sizes, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, num_experts={self.num_experts}, top_k={self.top_k}"


def upcycle(model: nn.Module, pattern: str, num_experts: int, top_k: int) -> RoutingLog:
    """Turns linear layers into `UpcycledLinear`, in place; the model computes what it did, to rounding.

    A layer that several places of the model share, or a weight that several of the layers share, stays shared; a weight
    shared with another kind of module (an embedding) becomes the layer's own. Layers on the meta device stay there.

    Args:
        model: gets the log as `routing_log`. Padding does not count in the balance loss where it is called with
            `attention_mask=` [B, T] as a keyword.
        pattern: regular expression over the names of modules (full match, as in peft).
        num_experts: N.
        top_k: k of them for each token.

    Returns:
        What the layers share: the last forward's balance loss (`balance()`), and expert use.

    Raises:
        RequestError: not 1 <= k <= N, nothing matches, or what matches cannot be copied; the model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> log = upcycle(model, "0", num_experts=4, top_k=2)
        >>> loss = model(torch.randn(3, 8)).square().mean() + 1e-3 * log.balance()
    """
    if not 1 <= top_k <= num_experts:
        raise RequestError(f"num_experts={num_experts}, top_k={top_k}: 1 <= top_k <= num_experts is what can be built")
    if layers_of(model):
        raise RequestError("the model is upcycled already; load its backbone anew")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    matching = [name for name in linears if name and re.fullmatch(pattern, name)]
    if not matching:
        known = {re.sub(r"\d+", "*", name) for name in linears}
        raise RequestError(f"targets {pattern!r} match no linear layer; {did_you_mean(pattern, known)}")
    _install(model, matching, num_experts, top_k, fill=True)
    log: RoutingLog = model.routing_log  # type: ignore[assignment]
    return log


def layers_of(model: nn.Module) -> dict[str, UpcycledLinear]:
    """The upcycled layers of a model by name; none where it is not upcycled."""
    return {name: module for name, module in model.named_modules() if isinstance(module, UpcycledLinear)}


def _install(model: nn.Module, names: Collection[str], num_experts: int, top_k: int, fill: bool) -> Callable[[], None]:
    """Replaces linears by name; returns what puts them back."""
    for name in names:
        _check_linear(model, name)
    log = RoutingLog()
    wanted = {id(model.get_submodule(name)) for name in names}
    places = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if id(module) in wanted]
    layers: dict[int, UpcycledLinear] = {}
    stacks: dict[int, nn.Parameter] = {}
    for name, linear in places:
        assert isinstance(linear, nn.Linear)
        if id(linear) not in layers:
            layer = layers[id(linear)] = UpcycledLinear(linear, num_experts, top_k, name, log, fill)
            layer.weight = stacks.setdefault(id(linear.weight), layer.weight)
        _put(model, name, layers[id(linear)])
    model.routing_log = log  # type: ignore[assignment]
    hook = model.register_forward_pre_hook(log.before_forward, with_kwargs=True)

    def undo() -> None:
        for name, linear in places:
            _put(model, name, linear)
        hook.remove()
        del model.routing_log

    return undo


def _check_linear(model: nn.Module, name: str) -> None:
    linear = model.get_submodule(name)
    if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
        raise RequestError(
            f"{name} belongs to nn.MultiheadAttention, which never calls it as a layer: split the attention with "
            "medbench.adapters.attention.split_attention(model), or leave it out of the targets"
        )
    plain = isinstance(linear, nn.Linear) and type(linear).forward is nn.Linear.forward
    if not plain or not cast(nn.Linear, linear).weight.is_floating_point():
        raise RequestError(f"{name} is {type(linear).__name__}, no plain nn.Linear (quantised?), and cannot be copied")


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, shared ones once."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def save_upcycled(model: nn.Module, folder: str | Path) -> None:
    """Saves every weight of an upcycled model, as `upcycled.safetensors` and `upcycle.json`, each atomically.

    Raises:
        RequestError: the model is not upcycled.
        WorkError: the folder cannot be written.
    """
    folder, layers = Path(folder), layers_of(model)
    if not layers:
        raise RequestError("the model is not upcycled: there is nothing to save")
    first = next(iter(layers.values()))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(model).items()}
    about = {"format": FORMAT, "num_experts": first.num_experts, "top_k": first.top_k, "layers": list(layers)}
    write_atomic(folder / WEIGHTS, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))
    write_json(folder / ABOUT, about)


def load_upcycled(model: nn.Module, folder: str | Path) -> RoutingLog:
    """Upcycles a freshly loaded backbone and fills all of it from a folder of `save_upcycled`; draws nothing.

    Args:
        model: changed in place; the stored values are cast to its dtype. After an error it is the backbone as it was
            (unless reading broke off half-way: then its layers are, and its values are not).
        folder: with `upcycled.safetensors` and `upcycle.json`.

    Returns:
        As `upcycle`.

    Raises:
        RequestError: the folder holds no upcycled model, or the model is upcycled already or on the meta device.
        WorkError: a file is damaged; or a tensor is missing, superfluous, or of another shape.
    """
    folder = Path(folder)
    about, weights = _read_about(folder / ABOUT), folder / WEIGHTS
    if not weights.is_file():
        raise RequestError(f"{folder} is no upcycled model: it holds no {WEIGHTS}")
    if layers_of(model) or any(tensor.is_meta for tensor in _tensors(model).values()):
        raise RequestError("an upcycled model is loaded into a plain backbone that has its weights; load that first")
    stored = stored_shapes(weights)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    absent = [name for name in about["layers"] if name not in linears]
    if absent:
        raise WorkError(
            f"{folder / ABOUT}: the backbone has no linear layer {first_names(absent)}; is it another backbone?"
        )
    undo = _install(model, about["layers"], about["num_experts"], about["top_k"], fill=False)
    try:
        _fill(_tensors(model), weights, stored)
    except WorkError:
        undo()
        raise
    log: RoutingLog = model.routing_log  # type: ignore[assignment]
    return log


def _fill(tensors: dict[str, torch.Tensor], weights: Path, stored: dict[str, tuple[int, ...]]) -> None:
    missing, unexpected = [n for n in tensors if n not in stored], [n for n in stored if n not in tensors]
    if missing:
        raise WorkError(f"{weights} lacks {len(missing)} tensors of the model: {first_names(missing)}")
    if unexpected:
        raise WorkError(
            f"{weights} holds {len(unexpected)} tensors the model has no place for: {first_names(unexpected)}"
        )
    unlike = [
        f"{name} is {list(stored[name])}, the model wants {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if tuple(tensor.shape) != stored[name]
    ]
    if unlike:
        raise WorkError(f"{weights} does not fit the model: {first_names(unlike)}")
    try:
        with safe_open(weights, framework="pt") as file, torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise WorkError(f"{weights} is damaged or incomplete: {error}") from error


def _read_about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RequestError(f"{path.parent} is no upcycled model: it holds no {path.name}")
    about = read_json(path)
    known = about.get("format") if isinstance(about, dict) else None
    if known != FORMAT:
        raise WorkError(f"{path}: format {known!r} is not one that this medbench reads ({FORMAT})")
    experts, top_k, layers = about.get("num_experts"), about.get("top_k"), about.get("layers")
    numbers = isinstance(experts, int) and isinstance(top_k, int) and 1 <= top_k <= experts
    if not numbers or not isinstance(layers, list) or not layers or not all(isinstance(n, str) for n in layers):
        raise WorkError(f"{path}: expected num_experts, top_k (1 <= top_k <= num_experts) and layers (a list of names)")
    return about
