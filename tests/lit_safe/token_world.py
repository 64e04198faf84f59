"""A real (tiny) language model fine-tuned with a loss of single tokens, and a guardrail that reads texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.types import IGNORE, SequenceBatch
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import talk

SGD = lambda parameters: torch.optim.SGD(parameters, lr=1.0)  # noqa: E731  # a step is the gradient itself


def tuned(objective=None, **options) -> SupervisedFineTuning:
    """A module of the tiny model, loaded."""
    module = SupervisedFineTuning(PolicyReference(TinyLlama()), SGD, token_objective=objective, **options)
    module.configure_model()
    return module


def fruit_batch(rows: int = 4) -> SequenceBatch:
    data = talk(rows_per_step=rows, micro_batch_rows=rows)
    data.setup()
    return next(iter(data.train_dataloader()))[0]


def weighed(batch: SequenceBatch, value: float | Tensor) -> SequenceBatch:
    return batch._replace(token_weight=torch.zeros(len(batch.sequences.target)) + value)


def gradient(module: SupervisedFineTuning, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


def disturbed(module: SupervisedFineTuning, size: float = 0.05) -> SupervisedFineTuning:
    """The module with a policy that has moved away from its reference."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=random)
    return module


def token_logps(module: SupervisedFineTuning, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
    """[R, V] float64 log-probs of policy and reference by plain transformers, and the targets [R]."""
    sequences = batch.sequences
    spans = list(zip(sequences.cu_seqlens[:-1].tolist(), sequences.cu_seqlens[1:].tolist(), strict=True))
    policy = module.pair.policy.causal_lm
    with module.pair._open_reference() as reference:
        found = []
        for model in (policy, reference.causal_lm):
            logits = [model(input_ids=sequences.input_ids[a:b][None]).logits[0] for a, b in spans]
            found.append(torch.cat(logits).double().log_softmax(-1))
    scored = sequences.target != IGNORE
    return found[0][scored], found[1][scored].detach(), sequences.target[scored]


class LongIsUnsafe:
    """Log-odds of being unsafe: the characters of the response so far, minus six. Counts what it reads."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        self.read += responses
        return torch.tensor([len(text) - 6.0 for text in responses])

    def digest(self) -> str:
        return "long is unsafe"
