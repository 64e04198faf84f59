"""Checkpoints that hold only trained parameters. The rest is read again from its source."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def keep_trainable(module: nn.Module) -> None:
    """Make ``module.state_dict()`` leave out parameters that do not train, and ``load_state_dict`` expect exactly that.

    ``requires_grad`` at the time of the call decides. Buffers are kept. Of tied parameters the first name is kept.
    Loading a state that lacks a trainable parameter or contains a frozen one fails, as torch does for any other key.
    """
    trainable = frozenset(name for name, p in module.named_parameters() if p.requires_grad)

    def drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        for name, _ in module.named_parameters(remove_duplicate=False):
            if name not in trainable:
                del state[prefix + name]

    def fill_frozen(
        module: nn.Module,
        state: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        first_name: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in trainable:
                continue
            if prefix + name in state:
                unexpected.append(prefix + name)
            state[prefix + name] = state.get(prefix + first_name[parameter], parameter.detach())

    module.register_state_dict_post_hook(drop_frozen)
    module.register_load_state_dict_pre_hook(fill_frozen)
