"""Adapters: importing this package makes `ExpertLoraConfig` a method of `peft`.

Afterwards `peft.get_peft_model(model, ExpertLoraConfig(...))` and `peft.PeftModel.from_pretrained(model,
folder)` work as for any method of peft's own.
"""

from medbench.adapters.attention import split_attention
from medbench.adapters.config import ExpertLoraConfig
from medbench.adapters.layer import ExpertLoraLayer
from medbench.adapters.load import load_adapter_strict
from medbench.adapters.model import ExpertLoraModel
from medbench.adapters.register import register

register()

__all__ = [
    "ExpertLoraConfig",
    "ExpertLoraLayer",
    "ExpertLoraModel",
    "load_adapter_strict",
    "register",
    "split_attention",
]
