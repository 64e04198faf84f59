"""How the weights of several models become one weight.

Letters: M models.
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_safe.errors.message import SettingError

Method = Literal["linear", "ties", "dare", "dare_ties"]
OF_PEFT = {"ties": "ties", "dare": "dare_linear", "dare_ties": "dare_ties"}
"""The methods that read changes from a base, and the functions of ``peft.utils.merge_utils`` that compute them."""
UNIT = 1e-6  # how far the sum of linear weights may be from 1


def shares(weight: float | Sequence[float] | None, models: int, method: str) -> list[float]:
    """The factor of each model.

    Args:
        weight: The share q of the second of two models, which gives 1 - q and q; or one number for each model. With
            None the models count equally: 1 / M each, and 1 each for ``ties`` and ``dare_ties``, which average by
            themselves.
        models: M.
        method: A ``Method``.

    Raises:
        SettingError: If the method is unknown, or the numbers do not fit it.
    """
    if method not in get_args(Method):
        raise SettingError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if weight is None:
        return [1.0] * models if method in ("ties", "dare_ties") else [1 / models] * models
    if isinstance(weight, int | float):
        if models != 2:
            raise SettingError(f"weight must give one number for each of {models} models, got {weight}")
        if not 0 <= weight <= 1:
            raise SettingError(f"weight must lie in [0, 1], the share of the second model, got {weight}")
        return [1.0 - weight, float(weight)]
    if len(weight) != models:
        raise SettingError(f"weight must give one number for each of {models} models, got {len(weight)}")
    if method == "linear" and not abs(sum(weight) - 1) <= UNIT:
        raise SettingError(f"weights of a linear merge must sum to 1, got {list(weight)}")
    return [float(one) for one in weight]


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum, as in P-SACPO: theta = (1 - q) theta_r + q theta_(r + lambda g) (arXiv:2404.11049).

    It is computed in at least fp32. If one weight is 1 and the others are 0, the result is that model's tensor, bit by
    bit.
    """
    kind = _widest(tensors)
    whole = [one for one, weight in zip(tensors, weights, strict=True) if weight]
    if len(whole) == 1 and sum(weights) == 1:
        return whole[0].to(kind)
    wide = torch.promote_types(kind, torch.float32)
    total = torch.zeros_like(tensors[0], dtype=wide)
    for one, weight in zip(tensors, weights, strict=True):
        total.add_(one.to(wide), alpha=weight)
    return total.to(kind)


def of_changes(
    method: str, base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], density: float, seed: int
) -> Tensor:
    """The base plus a merge of the models' changes, as peft computes it.

    ``ties`` keeps the largest share ``density`` of each tensor's changes, elects a sign for each number, and averages
    the changes that have it (Yadav et al. 2023, arXiv:2306.01708). ``dare`` keeps a random share and divides it by
    ``density`` (Yu et al. 2024, arXiv:2311.03099), then adds; ``dare_ties`` elects signs as ``ties`` does.

    Args:
        method: ``ties``, ``dare`` or ``dare_ties``.
        base: The weight from which all models were trained.
        tensors: M weights.
        weights: M factors.
        density: Share of the changes that is kept, in (0, 1].
        seed: Of the random choice.

    Raises:
        ModuleNotFoundError: If peft is not installed.
    """
    kind = _widest([base, *tensors])
    wide = torch.promote_types(kind, torch.float32)
    changes = [one.to(wide) - base.to(wide) for one in tensors]
    function = _peft(OF_PEFT[method])
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density 1.0 is greater than or equal to 1", UserWarning)
        torch.random.default_generator.manual_seed(seed)
        change: Tensor = function(changes, torch.tensor(weights, dtype=wide), density)
    return (base.to(wide) + change).to(kind)


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    kind = tensors[0].dtype
    for one in tensors[1:]:
        kind = torch.promote_types(kind, one.dtype)
    return kind


def _peft(name: str) -> Callable[..., Any]:
    try:
        module = importlib.import_module("peft.utils.merge_utils")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"this method of merge needs peft ({error}): pip install 'lit-safe[lora]'") from None
    function = getattr(module, name)
    assert callable(function)
    return function
