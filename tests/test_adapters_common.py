"""Small models and adapters for the adapter tests (no tests in here)."""

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from medbench.adapters import ExpertLoraConfig, ExpertLoraLayer

LLAMA_TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


class Mlp(nn.Module):
    """Two linear layers of unlike shapes; `forward` takes an attention mask and ignores it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(24, 40)
        self.narrow = nn.Linear(40, 16)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.narrow(torch.tanh(self.wide(x)))


def mlp(seed: int = 0) -> Mlp:
    torch.manual_seed(seed)
    return Mlp()


def llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def adapted(base: nn.Module, **settings: object) -> PeftModel:
    """`base` with an adapter; r = 8, N = 4, k = 2 and all linears of an `Mlp` unless said otherwise."""
    defaults: dict[str, object] = {"r": 8, "num_experts": 4, "top_k": 2, "target_modules": ["wide", "narrow"]}
    return get_peft_model(base, ExpertLoraConfig(**{**defaults, **settings}))


def expert_layers(model: nn.Module) -> list[ExpertLoraLayer]:
    return [module for module in model.modules() if isinstance(module, ExpertLoraLayer)]


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 1, size: float = 0.1) -> None:
    """Move every trainable tensor away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += size * torch.randn(parameter.shape, generator=generator)


def adapter_tensors(model: nn.Module, adapter: str = "default") -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if ".expert_" in k and k.endswith(f".{adapter}")}
