"""Keeps the policy's probability mass on responses that the reference writes, for each prompt.

Letters: P prompts, N samples of each prompt, K of these samples used at a time, M prompts in a step.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lit_safe.anchors import Anchor, Anchored
from lit_safe.execution.quiet import device_of, quiet
from lit_safe.execution.ranks import rank_and_world
from lit_safe.hashing import hash64, uniforms
from lit_safe.protocols.pair import LaysOut
from lit_safe.rollouts.answers import Rows, answers
from lit_safe.sequences import pack_sequences
from lit_safe.types import Measured, Prompt


class ReferenceMass(Anchor):
    """Adds ``weight`` * log(mass)^2, averaged over prompts. The mass is the mean over samples of policy / reference.

    For responses y drawn from the reference, E[policy(y) / reference(y)] is the policy's probability mass on the
    reference's support. It is 1 for every policy that stays within this support, whatever it prefers there. The term's
    optimum therefore does not compete with the objective's. Mass that moves to other text lowers it. The samples are
    drawn from the reference before training, at temperature 1. They depend only on (seed, prompt, number).

    The estimate from one fixed set of samples has a random error that training would exploit: if the samples of a
    prompt overestimate the mass, mass could leak there at no loss. Therefore a larger pool is drawn, and other samples
    are used each time a prompt is used. The log of a mean of K samples has a bias of Var(policy / reference) / 2K,
    which makes the term ask for slightly too much mass. (With a one-sided term -log(mass), all mass would move to
    responses that happen to be oversampled.)

    Memory: ``samples_per_step`` sequences, with their prompts, in one forward pass.

    Args:
        weight: Weight of the term, > 0: nats of loss per squared nat.
        samples_per_prompt: Number N of samples in the pool of each prompt.
        samples_per_step: Number K of samples that are used each time a prompt is used.
        prompts_per_step: Number M of prompts in each optimizer step over all ranks. Steps cycle through all prompts.
        max_prompts: Maximum number of prompts of the train split, chosen by hash. Null takes all.
        max_new_tokens: Maximum length of a sample in tokens. A cut sample stands for all responses that begin with it.
        batch_size: Number of samples drawn and scored at once before training.
        seed: Seed of the samples and of the order of prompts. Null takes the run's seed.

    Raises:
        ValueError: If a number is not positive, or ``samples_per_step`` exceeds ``samples_per_prompt``.
    """

    names = ("anchor/log_mass",)
    reads_reference = True

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
        self.seed = seed or 0  # set again by ``prepare``
        self._prompts: list[Prompt] = []
        self._responses: list[list[list[int]]] = []  # N token lists per prompt
        self._reference_PN = torch.empty(0)  # nats
        self._round: tuple[int, list[int]] = (-1, [])  # number and order of the current round over all prompts
        self._log_mass: list[Tensor] = []  # of the prompts of the last step

    def prepare(self, module: Anchored, data: Any) -> None:
        """Draw samples from the reference for prompts of the train split, and score them.

        Raises:
            ValueError: If there are more ranks than ``prompts_per_step``.
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

        # ranks share the work, then exchange all samples, because each rank may need any of them
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
        """Log how many samples will be drawn."""
        kept = len(self._prompts)
        left_out = f"; max_prompts leaves out {prompts - kept:,}" if kept < prompts else ""
        rank_zero_info(
            f"anchor: before the first step, and again at each resume, the reference writes {samples:,} responses of "
            f"up to {self.max_new_tokens} tokens, {self.samples_per_prompt} to each of {kept:,} prompts{left_out}: "
            f"{-(-samples // world):,} of them on each of {world} rank{'s' if world > 1 else ''}"
        )

    def on_step(self, module: Anchored, step: int) -> list[Callable[[], Tensor]]:
        """One part of the loss for each of this rank's prompts."""
        rank, world = rank_and_world()
        turns = self._turns(step)
        self._log_mass = []
        shares: list[Callable[[], Tensor]] = []
        for place in range(rank, -(-len(turns) // world) * world, world):
            # the last ranks may repeat a prompt; repeated results are ignored
            index, number = turns[place % len(turns)]
            shares.append(partial(self._share, module, index, self._drawn(index, number), place < len(turns)))
        return shares

    def logged(self) -> dict[str, Measured]:
        """``anchor/log_mass`` of this rank's prompts in the last step, in nats."""
        log_mass = torch.stack(self._log_mass) if self._log_mass else torch.zeros(0)
        return {"anchor/log_mass": Measured(log_mass, torch.ones_like(log_mass))}

    def _turns(self, step: int) -> list[tuple[int, int]]:
        """(prompt, round) for each prompt of a step. Each round has every prompt once, in a new random order."""
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
        """[K] indices of the samples of a prompt that are used in round ``number``."""
        pool = range(self.samples_per_prompt)
        return sorted(pool, key=lambda k: hash64("anchor-sample", self.seed, number, index, k))[: self.samples_per_step]

    def _share(self, module: Anchored, index: int, drawn: list[int], counts: bool) -> Tensor:
        prompt, responses = self._prompts[index], [self._responses[index][k] for k in drawn]
        packed = pack_sequences([prompt.ids] * len(responses), responses)
        if isinstance(module.pair, LaysOut):
            packed = module.pair.laid_out(packed)
        policy_K = module.pair.policy_logp(move_data_to_device(packed, device_of(module)))
        logratio_K = policy_K - self._reference_PN[index, drawn].to(policy_K)
        log_mass = logratio_K.logsumexp(0) - math.log(len(responses))
        if not counts:
            return 0.0 * log_mass
        self._log_mass.append(log_mass.detach())
        return self.weight * log_mass.square() / min(self.prompts_per_step, len(self._prompts))


def _padded(responses: Sequence[Sequence[int]], width: int) -> Tensor:
    """[n, width] ids + 1, padded with 0."""
    return torch.tensor([[*(token + 1 for token in ids), *[0] * (width - len(ids))] for ids in responses])
