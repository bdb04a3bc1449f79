"""The `peft` tuner: puts expert layers into a model and gathers their balance loss."""

from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from medbench.adapters.config import PREFIX, ExpertLoraConfig
from medbench.adapters.layer import ExpertLoraLayer, Linear, refuse_routed
from medbench.adapters.log import RoutingLog
from medbench.errors import RequestError, WorkError


class ExpertLoraModel(BaseTuner):
    """A model whose targeted linear layers carry routed low-rank experts.

    Built by `peft.get_peft_model(model, ExpertLoraConfig(...))`, not directly.

    Example:
        >>> import medbench.adapters
        >>> from peft import get_peft_model
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64)),
        ...                        ExpertLoraConfig(r=8, num_experts=4, target_modules=["0"]))
        >>> loss = model(torch.randn(2, 64)).square().mean() + model.penalty()
    """

    prefix: str = PREFIX
    tuner_layer_cls = ExpertLoraLayer
    # Only read when a configuration names no target modules.
    target_module_mapping = cast(dict[str, list[str]], TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)

    def balance_loss(self) -> torch.Tensor:
        """Mean over the layers of the last training-mode forward's balance loss L_b, which is then forgotten.

        Padding does not count where the model was called with `attention_mask=` [B, T] as a keyword and a
        layer's tokens have that shape; other layers count all their tokens. Reentrant gradient
        checkpointing (`use_reentrant=True`) runs the layers without gradient, and then there is nothing to
        balance with.

        Returns:
            A scalar; 0 where no routed layer ran in training mode with gradients on.
        """
        loss = self.routing_log.balance()
        self.routing_log.losses.clear()
        return self._zero() if loss is None else loss

    def penalty(self) -> torch.Tensor:
        """What training adds to its loss: each active adapter's balance loss and regularisers, with coefficients.

        As `balance_loss`, it is read once after a forward pass in training mode.

        Returns:
            A scalar; 0 where no active adapter has any.
        """
        total = self._zero()
        layers = [module for module in self.model.modules() if isinstance(module, ExpertLoraLayer)]
        for adapter_name in self.active_adapters:
            config = cast(ExpertLoraConfig, self.peft_config[adapter_name])
            balance = self.routing_log.balance(adapter_name)
            if balance is not None and config.balance_coefficient:
                total = total + config.balance_coefficient * balance.to(total.device)
            for layer in layers:
                own = layer.penalty(adapter_name, config) if adapter_name in layer.expert_spec else None
                if own is not None:
                    total = total + own.to(total.device)
        self.routing_log.losses.clear()
        return total

    def _zero(self) -> torch.Tensor:
        return torch.zeros((), device=next((p.device for p in self.model.parameters()), torch.device("cpu")))

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        # Runs once, before the first layer is made. The hook sits on the wrapped model itself, since
        # `generate` and wrappers of wrappers call that one and not this class's `forward`.
        self.routing_log = RoutingLog()
        self._to_check: set[str] = set()
        self._forward_hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.routing_log.before_forward(module, args, kwargs)
        if self._to_check:
            self._check_filled()

    def _check_filled(self) -> None:
        """Refuse to run an adapter that was built for a checkpoint and not (fully) filled by one."""
        layers = [module for module in self.model.modules() if isinstance(module, ExpertLoraLayer)]
        for adapter_name in sorted(self._to_check):
            missing = [key for layer in layers for key in layer.unfilled(adapter_name)]
            if missing:
                raise WorkError(
                    f"adapter {adapter_name!r}: no checkpoint filled {len(missing)} of its tensors, first "
                    f"{', '.join(missing[:3])}; to start a new adapter from a stored configuration pass "
                    "dataclasses.replace(config)"
                )
        self._to_check.clear()

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = cast(ExpertLoraConfig, peft_config)
        if isinstance(parent, nn.MultiheadAttention):
            # It reads `out_proj.weight` and never calls the module: an adapter there would do nothing.
            raise RequestError(
                f"{current_key} belongs to nn.MultiheadAttention, which never calls it as a layer: split it first with "
                "medbench.adapters.attention.split_attention(model), or leave it out with exclude_modules"
            )
        try:
            if isinstance(target, ExpertLoraLayer):
                layer: ExpertLoraLayer = target
                target.update_layer(adapter_name, config)
            else:
                layer = Linear(target, adapter_name, config, current_key, self.routing_log)
                self._replace_module(parent, target_name, layer, target)
        except RequestError as error:
            raise RequestError(f"{current_key}: {error}") from None
        if config.weights_follow or layer.expert_A[adapter_name].is_meta:
            self._to_check.add(adapter_name)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        for layer in self.model.modules():
            if isinstance(layer, ExpertLoraLayer):
                base = layer._base_dtype()
                layer.place(
                    adapter_name,
                    None,
                    torch.promote_types(base, torch.float32) if autocast_adapter_dtype else base,
                )

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters without a router into the base weights; `unmerge_adapter` restores them."""
        self._refuse_routed(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _refuse_routed(self, adapter_names: list[str] | None) -> None:
        # Before any layer is touched: a refusal half-way would leave a half-merged model.
        for adapter_name in adapter_names or self.active_adapters:
            refuse_routed(adapter_name, cast(ExpertLoraConfig, self.peft_config[adapter_name]).router)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from all layers."""
        super().delete_adapter(adapter_name)
        self._to_check.discard(adapter_name)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:  # peft declares None and returns the model
        if merge:
            self._refuse_routed(adapter_names)
        unload: Any = super()._unload_and_optionally_merge
        model = unload(merge, progressbar, safe_merge, adapter_names)
        self._forward_hook.remove()
        return model
