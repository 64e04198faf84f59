"""Checks of adapters: the merged and exported model must equal the policy, or the adapter is refused at load.

Merging replaces the adapter by changed weights. So an adapter must not change a weight that is used in two places, must
be of a kind that can be merged, and must change something under every name that it was given.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn

IGNORED = "Merge lora module to 4-bit linear may get different generations"
"""Beginning of peft's warning. Nothing is merged into 4 bits but the copy of the check below."""


def check_adapter(model: Any) -> None:
    """Refuse an adapter whose merged model would have other log-probs.

    Args:
        model: A peft model around a causal language model, before training.

    Raises:
        ValueError: One line that names the setting and an alternative.
    """
    lm = model.get_base_model()
    name = type(lm).__name__
    for config in model.peft_config.values():
        if config.is_prompt_learning:
            raise ValueError(
                f"{config.peft_type.value} puts states before the sequence, which no merged model holds: use LoRA"
            )
        _check_names(lm, config)
    owners = defaultdict(list)
    for path, module in lm.named_modules():
        for parameter in module._parameters.values():
            owners[id(parameter)].append(path)
    seen = set()
    for path, layer in adapted_layers(lm):
        for parameter in layer.get_base_layer()._parameters.values():
            others = [_plain(owner) for owner in owners[id(parameter)] if not owner.startswith(path)]
            if parameter is not None and others:
                raise ValueError(
                    f"{_plain(path)} of {name} is tied to {others[0]}, and an adapter on one of them would be merged "
                    "into both: leave it out of target_modules, or train a copy of the input embedding with "
                    "modules_to_save"
                )
        if type(layer) not in seen and not hasattr(layer, "parameter_name"):  # fused parameters always merge
            seen.add(type(layer))
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", IGNORED, UserWarning)
                    copy.deepcopy(layer).merge(safe_merge=True)
            except Exception as fault:  # the exception type depends on the kind of adapter
                raise ValueError(
                    f"the adapter on {_plain(path)} of {name} cannot be merged ({fault}): use plain LoRA"
                ) from None


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and layer of everything with low-rank weights, without full copies (modules_to_save)."""
    for path, module in model.named_modules():
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            yield path, module


def beyond_adapter(model: nn.Module) -> list[str]:
    """Names of parameters that train and stay in effect while the adapter is off, such as biases of the base."""
    switched = {
        id(parameter)
        for module in model.modules()
        for attribute in getattr(module, "adapter_layer_names", ())
        for parameter in _parameters(module, attribute)
    }
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in switched]


def whole_copies(model: nn.Module) -> bool:
    """Whether anything other than low-rank weights trains. Such layers meet the base's type without a cast by peft."""
    low_rank = {
        id(parameter)
        for _, layer in adapted_layers(model)
        for attribute in layer.adapter_layer_names
        for parameter in _parameters(layer, attribute)
    }
    return any(p.requires_grad and id(p) not in low_rank for p in model.parameters())


def check_reach(model: Any) -> None:
    """Refuse ``all-linear`` if it leaves out the experts, which some architectures hold as single parameters.

    Args:
        model: A peft model whose adapter was requested on all linear layers.

    Raises:
        ValueError: Names the parameters.
    """
    lm = model.get_base_model()
    under = [path for path, _ in adapted_layers(lm)]
    left = {
        re.sub(r"^.*?\.\d+\.", "", f"{path}.{name}")
        for path, module in lm.named_modules()
        if not any(path == one or path.startswith(one + ".") for one in under)
        and not isinstance(module, nn.modules.conv._ConvNd)
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.ndim == 3 and parameter.shape[0] > 1
    }
    if left:
        names = ", ".join(sorted(left))
        raise ValueError(
            f"all-linear reaches no expert of {type(lm).__name__}, which holds them in {names}: adapt them with "
            f"target_parameters: [{names}], or name target_modules without them"
        )


def _check_names(lm: nn.Module, config: Any) -> None:
    """Refuse a name in a list that matches nothing in the model."""
    modules = [_plain(path) for path, _ in lm.named_modules()]
    parameters = [_plain(path) for path, _ in lm.named_parameters(remove_duplicate=False)]
    for option, there in (
        ("target_modules", modules),
        ("modules_to_save", modules),
        ("target_parameters", parameters),
    ):
        wanted = getattr(config, option, None)
        if wanted is None or isinstance(wanted, str):
            continue
        for one in sorted(wanted):
            if not any(path == one or path.endswith("." + one) for path in there):
                raise ValueError(f"{option} names {one!r}, which {type(lm).__name__} does not have: leave it out")


def _parameters(module: nn.Module, attribute: str) -> Iterator[nn.Parameter]:
    held: Any = module
    for part in attribute.split("."):
        held = getattr(held, part, None)
    if isinstance(held, nn.Module):
        yield from held.parameters()


def _plain(path: str) -> str:
    """The path in the original model, without the adapter's wrappers."""
    return re.sub(r"\.(base_layer|original_module|token_adapter|modules_to_save\.[^.]+)(?=\.|$)", "", path)
