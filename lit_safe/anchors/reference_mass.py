"""Keep the policy's mass where the reference has it, prompt by prompt.

Letters: P prompts, N samples of each, K of them in a turn, M prompts in a step.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lit_safe.anchors import Anchor
from lit_safe.answers import Rows, answers
from lit_safe.hashing import hash64, uniforms
from lit_safe.metrics import Measured
from lit_safe.quiet import device_of, quiet
from lit_safe.ranks import rank_and_world
from lit_safe.sequences import pack_sequences
from lit_safe.types import Prompt

if TYPE_CHECKING:
    from lit_safe.module import PreferenceAlignment


class ReferenceMass(Anchor):
    """Adds ``weight`` * log(mass)^2, the mean over prompts, with mass = mean over samples of policy / reference.

    Over responses y that the reference writes to one prompt, E[policy(y) / reference(y)] is the mass that the policy
    has on the set of such responses. It is 1 for any policy that stays inside, whatever it prefers there, so the term's
    optimum does not compete with the objective's; what leaves for text that no pair holds is missed. The samples are
    drawn from the reference before training, at temperature 1, and are a function of (seed, prompt, number).

    An estimate of the mass from one set of samples is off by a factor that training would learn to use: a prompt whose
    samples happen to overrate the policy may leak for nothing. So a larger pool is drawn, of which each turn of a
    prompt takes other samples. The logarithm of a mean of K is biased by Var(policy / reference) / 2K, towards asking
    for slightly too much. (One-sided, -log(mass), all would go to the response that was drawn too often.)

    Memory: ``samples_per_step`` sequences in one forward pass, the prompt included.

    Args:
        weight: > 0; nats of loss for a squared nat.
        samples_per_prompt: Pool of each prompt.
        samples_per_step: K of them in a turn of the prompt.
        prompts_per_step: M prompts in each optimizer step over all ranks; all prompts take turns.
        max_prompts: At most so many prompts of the train split, chosen by hash; null takes all.
        max_new_tokens: Longest sample. One cut there stands for all responses that begin with it.
        batch_size: Samples drawn and scored at once before training.
        seed: Of the samples and the turns; null takes the run's.

    Raises:
        ValueError: If a number is not positive, or a turn takes more samples than there are.
    """

    names = ("anchor/log_mass",)

    def __init__(
        self,
        weight: float = 0.1,
        samples_per_prompt: int = 64,
        samples_per_step: int = 32,
        prompts_per_step: int = 4,
        max_prompts: int | None = 256,
        max_new_tokens: int = 64,
        batch_size: int = 64,
        seed: int | None = None,
    ) -> None:
        counts = {
            "weight": weight,
            "samples_per_prompt": samples_per_prompt,
            "samples_per_step": samples_per_step,
            "prompts_per_step": prompts_per_step,
            "max_prompts": 1 if max_prompts is None else max_prompts,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
        }
        for name, value in counts.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be > 0, got {value}")
        if samples_per_step > samples_per_prompt:
            raise ValueError(f"samples_per_step is {samples_per_step} of {samples_per_prompt} samples_per_prompt")
        self.weight = weight
        self.samples_per_prompt = samples_per_prompt
        self.samples_per_step = samples_per_step
        self.prompts_per_step = prompts_per_step
        self.max_prompts = max_prompts
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self._typed_seed = seed
        self.seed = seed or 0  # known when ``prepare`` is called
        self._prompts: list[Prompt] = []
        self._responses: list[list[list[int]]] = []  # N token lists a prompt
        self._reference_PN = torch.empty(0)  # nats
        self._round: tuple[int, list[int]] = (-1, [])  # the order of a round of turns
        self._log_mass: list[Tensor] = []  # of the prompts of the last step

    def prepare(self, module: "PreferenceAlignment", data: Any) -> None:
        """Sample and score the reference on prompts of the train split.

        Raises:
            ValueError: With more ranks than ``prompts_per_step``.
        """
        _, world = rank_and_world()
        if self.prompts_per_step < world:
            raise ValueError(f"prompts_per_step is {self.prompts_per_step}: {world} ranks need at least one each")
        self.seed = module.seed if self._typed_seed is None else self._typed_seed
        everything: list[Prompt] = list(data.prompts("train"))
        order = sorted(everything, key=lambda p: (hash64("anchor-prompt", self.seed, p.prompt_id), p.prompt_id))
        self._prompts = order[: self.max_prompts]
        samples = self.samples_per_prompt
        jobs = [(prompt, number) for prompt in self._prompts for number in range(samples)]
        self._say(len(everything), len(jobs), world)
        ids, logps = Rows(len(jobs)), Rows(len(jobs))

        def draw(prompt: Prompt, number: int) -> Tensor:
            return uniforms(self.max_new_tokens, "anchor", self.seed, prompt.prompt_id, number)

        # ranks share the work and then know all samples: any rank may come to need any
        with quiet(module, hash64("anchor-pass", self.seed)) as device:
            what = "batch of reference samples"
            for batch in answers(module, data, jobs, draw, batch_size=self.batch_size, reference=True, what=what):
                ids.put(batch, _padded(batch.ids, self.max_new_tokens))
                logps.put(batch, module.pair.reference_logp(batch.packed(device)))
            rows, reference_J = ids.everywhere(device).tolist(), logps.everywhere(device)
        responses = [[token - 1 for token in row if token] for row in rows]
        self._responses = [responses[start : start + samples] for start in range(0, len(jobs), samples)]
        self._reference_PN = reference_J.view(-1, samples)

    def _say(self, prompts: int, samples: int, world: int) -> None:
        """What is about to be drawn, before it begins."""
        kept = len(self._prompts)
        left_out = f"; max_prompts leaves out {prompts - kept:,}" if kept < prompts else ""
        rank_zero_info(
            f"anchor: before the first step, and again at each resume, the reference writes {samples:,} responses of "
            f"up to {self.max_new_tokens} tokens, {self.samples_per_prompt} to each of {kept:,} prompts{left_out}: "
            f"{-(-samples // world):,} of them on each of {world} rank{'s' if world > 1 else ''}"
        )

    def on_step(self, module: "PreferenceAlignment", step: int) -> list[Callable[[], Tensor]]:
        """One share for each of this rank's prompts."""
        rank, world = rank_and_world()
        turns = self._turns(step)
        self._log_mass = []
        shares: list[Callable[[], Tensor]] = []
        for place in range(rank, -(-len(turns) // world) * world, world):
            # the last ranks may repeat a prompt, which then counts for nothing
            index, number = turns[place % len(turns)]
            shares.append(partial(self._share, module, index, self._drawn(index, number), place < len(turns)))
        return shares

    def logged(self) -> dict[str, Measured]:
        """``anchor/log_mass``: of this rank's prompts in the last step, nats."""
        log_mass = torch.stack(self._log_mass) if self._log_mass else torch.zeros(0)
        return {"anchor/log_mass": Measured(log_mass, torch.ones_like(log_mass))}

    def _turns(self, step: int) -> list[tuple[int, int]]:
        """Prompts of a step with the number of their turn: every prompt once in each round, in an order of its own."""
        count = len(self._prompts)
        size = min(self.prompts_per_step, count)
        places = (divmod(place, count) for place in range(step * size, (step + 1) * size))
        return [(self._order(number)[place], number) for number, place in places]

    def _order(self, number: int) -> list[int]:
        if self._round[0] != number or len(self._round[1]) != len(self._prompts):
            order = sorted(range(len(self._prompts)), key=lambda i: hash64("anchor-turn", self.seed, number, i))
            self._round = (number, order)
        return self._round[1]

    def _drawn(self, index: int, number: int) -> list[int]:
        """[K] which samples of a prompt its turn takes."""
        pool = range(self.samples_per_prompt)
        return sorted(pool, key=lambda k: hash64("anchor-sample", self.seed, number, index, k))[: self.samples_per_step]

    def _share(self, module: "PreferenceAlignment", index: int, drawn: list[int], counts: bool) -> Tensor:
        prompt, responses = self._prompts[index], [self._responses[index][k] for k in drawn]
        packed = move_data_to_device(pack_sequences([prompt.ids] * len(responses), responses), device_of(module))
        policy_K = module.pair.policy_logp(packed)
        logratio_K = policy_K - self._reference_PN[index, drawn].to(policy_K)
        log_mass = logratio_K.logsumexp(0) - math.log(len(responses))
        if not counts:
            return 0.0 * log_mass
        self._log_mass.append(log_mass.detach())
        return self.weight * log_mass.square() / min(self.prompts_per_step, len(self._prompts))


def _padded(responses: Sequence[Sequence[int]], width: int) -> Tensor:
    """[n, width] ids + 1, and 0 behind the end of each response."""
    return torch.tensor([[*(token + 1 for token in ids), *[0] * (width - len(ids))] for ids in responses])
