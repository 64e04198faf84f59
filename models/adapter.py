"""What an adapter may touch: whatever it changes is the same policy merged and exported, or is refused at load.

Merged weights stand where the adapter stood, so an adapter must change no weight that is read in two places, must be
one that merges, and must change something under every name that it was given.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn


def check_adapter(model: Any) -> None:
    """Refuse an adapter that the merged model would not have the log-probs of.

    Args:
        model: A peft model around a causal language model, before training.

    Raises:
        ValueError: In one line that names the choice and what to use.
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
                copy.deepcopy(layer).merge(safe_merge=True)
            except Exception as fault:  # whatever this kind of adapter says of it
                raise ValueError(
                    f"the adapter on {_plain(path)} of {name} cannot be merged ({fault}): use plain LoRA"
                ) from None


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and layer of everything that carries low-rank weights; whole copies (modules_to_save) are none of them."""
    for path, module in model.named_modules():
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            yield path, module


def beyond_adapter(model: nn.Module) -> list[str]:
    """Names of what trains and stays in effect while the adapter is switched off, such as biases of the base."""
    switched = {
        id(parameter)
        for module in model.modules()
        for attribute in getattr(module, "adapter_layer_names", ())
        for parameter in _parameters(module, attribute)
    }
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in switched]


def whole_copies(model: nn.Module) -> bool:
    """Whether something trains that is no low-rank weight: its layers meet the base's type without a cast of peft."""
    low_rank = {
        id(parameter)
        for _, layer in adapted_layers(model)
        for attribute in layer.adapter_layer_names
        for parameter in _parameters(layer, attribute)
    }
    return any(p.requires_grad and id(p) not in low_rank for p in model.parameters())


def check_reach(model: Any) -> None:
    """Refuse ``all-linear`` where it leaves out the experts, which some architectures hold as one parameter each.

    Args:
        model: A peft model whose adapter was asked for on all linear layers.

    Raises:
        ValueError: Naming the parameters.
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
    """Every name of a list must name something."""
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
    """The path in the model itself, without the wrappers that an adapter put there."""
    return re.sub(r"\.(base_layer|original_module|token_adapter|modules_to_save\.[^.]+)(?=\.|$)", "", path)
