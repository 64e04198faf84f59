"""A step whose gradient norm is not finite changes no weight, whenever the norm is read."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_safe.training import finite
from lit_safe.training.finite import FiniteNorms, leaves_out_steps
from tests.lit_safe.pair_world import adamw, aligned, pairs, trainer, weights


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms are read later, as on a device that computes by itself."""
    monkeypatch.setattr(finite, "_read_later", lambda value: value.clone().item)


def fused() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    return weight, torch.optim.AdamW([weight], lr=0.1, fused=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_is_refused_at_once_on_a_cpu(bad: float) -> None:
    _, optimizer = fused()
    with pytest.raises(FloatingPointError, match="at optimizer step 7"):
        FiniteNorms().take(torch.tensor(bad), optimizer, 7)


@pytest.mark.usefixtures("later")
def test_a_step_that_is_left_out_changes_neither_weights_nor_moments_nor_the_count_of_steps() -> None:
    weight, optimizer = fused()
    norms = FiniteNorms()

    def step(gradient: Tensor) -> None:
        weight.grad = gradient
        norms.take(gradient.norm(), optimizer, 0)
        optimizer.step()

    step(torch.tensor([1.0, 2.0]))
    kept = [weight.detach().clone(), *(value.clone() for value in optimizer.state[weight].values())]
    step(torch.tensor([1.0, math.nan]))
    for value, before in zip([weight.detach(), *optimizer.state[weight].values()], kept, strict=True):
        assert torch.equal(value, before)
    with pytest.raises(FloatingPointError, match="gradient norm is nan"):
        step(torch.tensor([1.0, 1.0]))
    assert torch.equal(weight.detach(), kept[0]), "the next step is not taken either"
    norms.settle()  # it is said once


def test_only_an_optimizer_that_leaves_out_steps_by_itself_is_read_later() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    assert leaves_out_steps(torch.optim.AdamW([parameter], fused=True))
    assert not leaves_out_steps(torch.optim.AdamW([parameter], foreach=True))
    assert not leaves_out_steps(torch.optim.SGD([parameter], lr=0.1))


@pytest.mark.parametrize("last", [False, True], ids=["another step follows", "the run ends"])
@pytest.mark.usefixtures("later")
def test_a_run_ends_with_the_weights_from_before_the_step(last: bool, tmp_path: Path) -> None:
    module: Any = aligned(lr=0.01)
    assert adamw(0.01)([torch.nn.Parameter(torch.ones(1))]).defaults["fused"] is None, "it is fused by the module"
    share, ends = module.loss_share, []

    def poisoned(batch: Any) -> Tensor:
        ends.append(weights(module))
        return share(batch) * (math.nan if len(ends) == 3 else 1.0)

    module.loss_share = poisoned
    with pytest.raises(FloatingPointError, match="at optimizer step 2"):
        trainer(tmp_path, max_steps=3 if last else 5, log_every_n_steps=50).fit(module, pairs())
    assert len(ends) == (3 if last else 4)
    assert torch.equal(weights(module), ends[2])
    assert not torch.equal(ends[1], ends[2])
