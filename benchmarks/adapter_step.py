"""Forward and backward of a layer of every method against the frozen linear and peft's LoRA of the same total rank.

    python benchmarks/adapter_step.py [--device cuda --dtype bfloat16] [--compile] [--shape 768x768] [--step]

All variants of a shape run interleaved in one process (round by round, each once), so that what else the machine does
hits all of them alike; a figure is the median over rounds of a round's ratio, with the quartiles. `x LoRA` is the ratio
to peft's LoRA, `x base` that to the frozen linear alone. Absolute times compare nothing between machines.

The variants: rank 32 in all, 8 experts of which 2 are routed (HydraLoRA: one shared A of rank 4). The factors are
random numbers: what an SVD would put there does not change the work. `dispatch loop` is the usual way to write a
mixture, one expert at a time on the tokens routed to it, with the arithmetic of `moelora`.

`--step` measures a whole training step of `nano-vl` (batch of 16 questions, forward, backward, AdamW) instead.
On a GPU the floor is printed, too: the bytes that must be moved and the operations, of LoRA beside the linear.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import medbench.adapters  # noqa: F401  (makes the tuner known to peft)
from medbench.catalog import Catalog
from medbench.listing import text_table
from medbench.tuners import get_tuner

RANK = 32
SHAPES = ((768, 768), (3072, 768), (768, 3072), (1536, 1536), (18944, 3584), (3584, 18944))
TOKENS = (256, 1024, 4096)
METHODS = ("dora", "pissa", "kasa", "moelora", "spectral_moe", "adamole", "hydralora")
#: Operations of a linear's forward and backward above which a CPU measures a third of the rounds, and none.
CPU_FEWER, CPU_LIMIT = 1e11, 4e11


class DispatchLoop(nn.Module):
    """A routed mixture as it is usually written: for each expert, gather its tokens, compute, scatter them back."""

    def __init__(self, base: nn.Linear, experts: int = 8, top_k: int = 2):
        """Args: the frozen linear; N; k."""
        super().__init__()
        d = RANK // experts
        self.base, self.top_k = base, top_k
        self.a = nn.ParameterList(torch.randn(d, base.in_features) * 0.02 for _ in range(experts))
        self.b = nn.ParameterList(torch.randn(base.out_features, d) * 0.02 for _ in range(experts))
        self.router = nn.Parameter(torch.randn(experts, base.in_features) * 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, n] -> [tokens, m]."""
        y = self.base(x)
        values, chosen = (x.to(self.router.dtype) @ self.router.T).topk(self.top_k, dim=-1)
        gates = values.softmax(-1)
        for number, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            rows, slot = torch.where(chosen == number)
            out = (x[rows].to(a.dtype) @ a.T) @ b.T * (2.0 * gates[rows, slot]).unsqueeze(-1)
            y = y.index_add(0, rows, out.to(y.dtype))
        return y


def variants(out: int, inp: int, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """A layer of every method around one frozen weight."""
    weight = (torch.randn(out, inp) * inp**-0.5).to(device, dtype)

    def linear() -> nn.Linear:
        layer = nn.Linear(inp, out, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer

    found: dict[str, nn.Module] = {"base": linear()}
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"])
    found["lora"] = get_peft_model(nn.Sequential(linear()), lora).base_model.model[0]
    for name in METHODS:
        method = Catalog().method(name)
        settings = {**method.at("nano").adapter, "r": RANK}
        settings.pop("targets")
        config = get_tuner(method.tuner).peft_config(settings, "0", 0)
        if method.tuner == "expert_lora":
            config._weights_follow = True  # no SVD: the factors are filled below
        found[name] = get_peft_model(nn.Sequential(linear()), config).base_model.model[0]
    found["dispatch loop"] = DispatchLoop(linear())
    generator = torch.Generator(device).manual_seed(0)
    for module in found.values():
        module.to(device).train()
        for name, parameter in module.named_parameters():
            if parameter.data_ptr() != weight.data_ptr() and "magnitude" not in name:
                parameter.data = torch.randn(parameter.shape, generator=generator, device=device) * 0.02
    return found


def interleaved(work: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every piece of work in each round; the first two rounds are thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 2):
        for name, do in work.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            do()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number > 1:
                taken[name].append(time.perf_counter() - started)
    return taken


def ratio(of: list[float], to: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile of the rounds' ratios."""
    quartiles = statistics.quantiles([a / b for a, b in zip(of, to, strict=True)], n=4)
    return [round(q, 3) for q in quartiles]


def rows_of(about: dict[str, Any], taken: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each variant; ratios to LoRA and, where it was measured, to the frozen linear."""
    rows = []
    for name, seconds in taken.items():
        low, middle, high = ratio(seconds, taken["lora"])
        row = {**about, "variant": name, "x LoRA": middle, "quartiles": f"{low:.2f} to {high:.2f}"}
        if "base" in taken:
            row["x base"] = ratio(seconds, taken["base"])[1]
        rows.append(row)
    return rows


def layer_rows(
    device: torch.device, dtype: torch.dtype, compiled: bool, rounds: int, shapes: Sequence[tuple[int, int]] = SHAPES
) -> list[dict[str, Any]]:
    """Forward and backward of single layers."""
    rows = []
    for out, inp in shapes:
        layers = variants(out, inp, device, dtype)
        if compiled:
            layers = {
                name: layer if name == "dispatch loop" else torch.compile(layer) for name, layer in layers.items()
            }
        for tokens in TOKENS:
            operations = 4 * tokens * out * inp
            if device.type == "cpu" and operations > CPU_LIMIT:
                continue
            fewer = device.type == "cpu" and operations > CPU_FEWER
            x = torch.randn(tokens, inp, device=device, dtype=dtype, requires_grad=True)
            gradient = torch.randn(tokens, out, device=device, dtype=dtype)

            def step(layer: nn.Module, x: torch.Tensor = x, gradient: torch.Tensor = gradient) -> None:
                layer(x).backward(gradient)
                x.grad = None
                for parameter in layer.parameters():
                    parameter.grad = None

            work = {name: (lambda layer=layer: step(layer)) for name, layer in layers.items()}
            taken = interleaved(work, max(3, rounds // 3) if fewer else rounds, device)
            about: dict[str, Any] = {"shape": f"{out} x {inp}", "tokens": tokens}
            found = rows_of(about, taken)
            if device.type == "cuda":
                moved, operations = floor(out, inp, tokens, dtype)
                for row in found:
                    row |= {"floor bytes": moved, "floor FLOPs": operations}
            rows += found
            print(text_table(found), file=sys.stderr, flush=True)
    return rows


def floor(out: int, inp: int, tokens: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes and operations that the linear with a LoRA of rank 32 cannot do without, forward and backward."""
    size = torch.empty((), dtype=dtype).element_size()
    moved = size * (2 * out * inp + 2 * tokens * (out + inp)) + 4 * 4 * RANK * (out + inp)
    return moved, 4 * tokens * out * inp + 6 * tokens * RANK * (out + inp)


def step_rows(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A whole training step of nano-vl: a batch of 16 phantom questions, forward, backward, AdamW."""
    from medbench.backbones.adapt import attach, penalty_of
    from medbench.backbones.registry import get_backbone
    from medbench.backbones.vlm import load_vlm
    from medbench.data.load import limited, load_items
    from medbench.plan import Request, resolve
    from medbench.training.collate import Collator, examples

    catalog = Catalog()
    card = catalog.task("phantom_vqa")
    items = limited(load_items(card, "train", None, "fail").items, 16, "train")
    work: dict[str, Callable[[], Any]] = {}
    for name in ("lora", "rslora", *METHODS, "full_ft", "full_ft_moe"):
        spec = resolve(Request(tasks=["phantom_vqa"], methods=[name]), catalog).specs[0]
        vlm = load_vlm(get_backbone("nano-vl"), torch.float32, device, {})
        attach(vlm, spec.method, seed=0)
        vlm.model.to(device).train()
        tokens = {item.image.key: 16 for item in items}
        batch = {k: v.to(device) for k, v in Collator(vlm)(examples(vlm, card, items, tokens)).items()}
        optimiser = torch.optim.AdamW([p for p in vlm.model.parameters() if p.requires_grad], lr=1e-4)
        penalty = penalty_of(vlm, spec.method)

        def step(
            model: Any = vlm.model, batch: Any = batch, optimiser: Any = optimiser, penalty: Any = penalty
        ) -> None:
            loss = model(**batch, use_cache=False).loss
            if penalty is not None:
                loss = loss + penalty()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        work[name] = step
    return rows_of({"step": "nano-vl, 16 questions"}, interleaved(work, rounds, device))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shape", action="append", metavar="OUTxIN", help="only this one (may be repeated)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    if args.step:
        rows = step_rows(device, args.rounds)
    else:
        shapes = [shape for shape in SHAPES if not args.shape or f"{shape[0]}x{shape[1]}" in args.shape]
        rows = layer_rows(device, getattr(torch, args.dtype), args.compile, args.rounds, shapes)
    about = {"device": args.device, "dtype": args.dtype, "compiled": args.compile, "threads": torch.get_num_threads()}
    print(json.dumps({**about, "rows": rows}, indent=1) if args.json else f"{about}\n\n{text_table(rows)}")


if __name__ == "__main__":
    main()
