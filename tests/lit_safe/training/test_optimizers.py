"""Weight decay acts on matrices, and the optimizer of no words is a gentle one."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_safe.objectives import DPO
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.optimizers import optimizer_over
from lit_safe.training.sft import SupervisedFineTuning
from models.adaptation import LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff
from models.sources import TinyLlama
from tests.lit_safe.pair_world import pairs, talk, trainer

DECAY = partial(torch.optim.AdamW, lr=1e-9, weight_decay=1e6)  # a step takes 0.1 % of what decays, and nothing else


def shrunk(module: Any, data: Any, folder: Path) -> dict[str, float]:
    """By how much one step shortened each tensor that trains."""
    module.configure_model()
    before = {name: p.detach().norm() for name, p in module.named_parameters() if p.requires_grad}
    trainer(folder, max_steps=1).fit(module, data)
    after = {name: p.detach().norm() for name, p in module.named_parameters() if p.requires_grad}
    return {name: float(1 - after[name] / before[name]) for name in before if before[name] > 0}


@pytest.mark.parametrize("kind", [PreferenceAlignment, SupervisedFineTuning])
@pytest.mark.parametrize("decay_norms", [False, True])
def test_norms_decay_where_that_was_asked_for(kind: Any, decay_norms: bool, tmp_path: Path) -> None:
    objective = (DPO(),) if kind is PreferenceAlignment else ()
    module = kind(PolicyReference(TinyLlama()), *objective, optimizer=DECAY, decay_norms=decay_norms)
    share = shrunk(module, pairs() if objective else talk(), tmp_path)
    norms = [name for name in share if "norm" in name]
    assert len(norms) == 5
    for name, by in share.items():
        assert by == pytest.approx(0 if name in norms and not decay_norms else 1e-3, abs=1e-5), name


def test_adapters_are_matrices(tmp_path: Path) -> None:
    pair = PolicyReference(TinyLlama(), LoRA(r=2), AdapterOff())
    share = shrunk(PreferenceAlignment(pair, DPO(), optimizer=DECAY), pairs(), tmp_path)
    assert all(by == pytest.approx(1e-3, abs=1e-5) for by in share.values())


def test_groups_are_made_where_decay_tells_parameters_apart() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))

    def groups(*parameters: torch.nn.Parameter, decay: float = 0.1) -> list[tuple[int, float]]:
        made = optimizer_over(partial(torch.optim.AdamW, weight_decay=decay), parameters, decay_norms=False)
        return [(len(group["params"]), group["weight_decay"]) for group in made.param_groups]

    assert groups(matrix, vector) == [(1, 0.1), (1, 0.0)]
    assert groups(matrix, vector, decay=0.0) == [(2, 0.0)]
    assert groups(vector) == [(1, 0.0)]
    assert groups(matrix) == [(1, 0.1)]


def test_without_words_a_model_is_trained_gently() -> None:
    module = PreferenceAlignment(PolicyReference(TinyLlama()), DPO())
    made = module.optimizer([torch.nn.Parameter(torch.ones(2))])
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (1e-6, 0.0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_one_kernel_updates_all_weights_and_to_the_same_values(kind: Any, decay: float) -> None:
    torch.manual_seed(0)
    begin = [torch.randn(5, 3), torch.randn(3)]
    gradients = [[torch.randn_like(value) for value in begin] for _ in range(3)]
    ends = []
    for made in (
        lambda parameters: optimizer_over(partial(kind, lr=0.1, weight_decay=decay), parameters, decay_norms=True),
        lambda parameters: kind(parameters, lr=0.1, weight_decay=decay, foreach=False),
    ):
        parameters = [torch.nn.Parameter(value.clone()) for value in begin]
        optimizer = made(parameters)
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        ends.append((optimizer.param_groups[0]["fused"], torch.cat([p.detach().flatten() for p in parameters])))
    assert ends[0][0] is True
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-6, atol=1e-6)


def test_settings_of_the_optimizer_stay() -> None:
    for words in ({"fused": False}, {"foreach": True}, {"foreach": False}):
        found = optimizer_over(
            partial(torch.optim.AdamW, **words), [torch.nn.Parameter(torch.ones(2, 2))], decay_norms=True
        )
        assert all(found.param_groups[0][name] is value for name, value in words.items())
        assert not found.param_groups[0]["fused"]
