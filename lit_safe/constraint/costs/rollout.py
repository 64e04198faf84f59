"""Estimates E[cost] from fresh responses of the current policy, as C-DPO's dual step requires."""

import functools
import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.constraint.costs import HeldOut
from lit_safe.constraint.costs.mean import MeanCost, mean_cost, spread_of, unsafe_interval
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import rank_and_world
from lit_safe.hashing import hash64, uniforms
from lit_safe.protocols.pair import HasPair
from lit_safe.rollouts.answers import Answers, Rows, answers
from lit_safe.rollouts.scoring import check_scores, name_of, score
from lit_safe.scorer_card import check_scorer
from lit_safe.sequences import pack_sequences
from lit_safe.types import IGNORE, CostEstimate, CostFunction, Prompt, ScoredResponse

log = logging.getLogger(__name__)

SHOWN = 8  # samples kept for people to read
STILL = 1.1  # times the wanted standard error: above it, one line says that the prompts are too few


class _Answered(NamedTuple):
    """Answers [n] to prompts: costs [n] or [n, C], parts of the drift [n, 5], whether cut and whether empty [n, 2]."""

    prompt_n: Tensor
    cost: Tensor
    drift: Tensor
    malformed: Tensor
    samples: tuple[ScoredResponse, ...]

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return len(self.prompt_n.unique())

    @property
    def mean(self) -> MeanCost:
        """The estimate of E[cost]."""
        return mean_cost(self.cost, torch.ones(len(self.prompt_n), dtype=torch.float64), self.prompt_n)

    def with_more(self, more: "_Answered") -> "_Answered":
        """Both together."""
        prompt_n, cost, drift, malformed = (torch.cat(pair) for pair in zip(self[:4], more[:4], strict=True))
        return _Answered(prompt_n, cost, drift, malformed, (*self.samples, *more.samples)[:SHOWN])


class RolloutCost:
    """Estimates E[cost]: samples the policy's responses to held-out prompts and scores their text.

    A sample depends only on (seed, epoch, prompt, its number) and the policy. It does not depend on batch size, ranks
    or earlier draws. The random numbers of a prompt's samples form a Latin hypercube over the generation steps (McKay,
    Beckman and Conover 1979, Technometrics 21). Each sample still follows the policy's distribution, and the mean has
    less variance than the mean of independent samples, at no extra cost. Empty responses are scored like any other.
    Responses cut at ``max_new_tokens`` are scored as they are.

    It also measures three quantities per response token at the sampled positions. ``drift/kl_per_token`` is
    KL(policy || reference) over the full vocabulary. ``drift/entropy_per_token`` is the entropy of the policy's next
    token. ``drift/reference_logp_per_token`` is the reference's log-probability of the sampled token.
    ``dual/truncated`` is the share of responses that were cut before their stop token, ``dual/empty`` of those without
    text.

    Args:
        cost: Scores text; > 0 is unsafe. The ``__call__`` of your own class must have exactly the annotations of
            ``CostFunction``. Otherwise the command line does not accept it.
        prompts: Number of prompts of the dual split to answer. If there are fewer, all are answered.
        samples_per_prompt: Number of responses to each prompt. More prompts reduce the error more than more samples.
        max_new_tokens: Maximum length of a response in tokens.
        temperature: Sampling temperature. With a value other than 1, the estimate is not E[cost] of the policy itself.
        batch_size: Number of responses generated at once.
        fresh_prompts: Choose other prompts in each epoch. If false, the same prompts are answered every time. Then the
            cost curve is smoother, but the multiplier is fitted to these prompts.
        drift_samples_per_prompt: Number of samples per prompt on which drift is measured. This takes longer than
            generating a sample. Null measures all of them.
        stderr: Wanted standard error of the estimate, in cost units. ``prompts`` prompts are answered first, and then
            as many more as their costs ask for, up to the whole dual split. Null: no more.

    Raises:
        ValueError: If a count, the temperature or ``stderr`` is not positive, or ``prompts`` is 1 (no standard error).
    """

    def __init__(
        self,
        cost: CostFunction,
        prompts: int = 64,
        samples_per_prompt: int = 1,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        batch_size: int = 16,
        fresh_prompts: bool = True,
        drift_samples_per_prompt: int | None = None,
        stderr: float | None = None,
    ) -> None:
        if prompts < 2:
            raise ValueError(f"prompts must be at least 2, got {prompts}")
        for name, value in (
            ("samples_per_prompt", samples_per_prompt),
            ("max_new_tokens", max_new_tokens),
            ("temperature", temperature),
            ("batch_size", batch_size),
        ):
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if stderr is not None and not 0 < stderr < math.inf:
            raise ValueError(f"stderr must be > 0 and finite, got {stderr}")
        self.stderr = stderr
        self.cost = cost
        self.prompts = prompts
        self.samples_per_prompt = samples_per_prompt
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.batch_size = batch_size
        self.fresh_prompts = fresh_prompts
        self.drift_samples_per_prompt = drift_samples_per_prompt or samples_per_prompt
        if self.drift_samples_per_prompt < 1 or drift_samples_per_prompt == 0:
            raise ValueError(f"drift_samples_per_prompt must be > 0, got {drift_samples_per_prompt}")

    def __call__(self, module: HasPair, data: HeldOut, *, seed: int, epoch: int) -> CostEstimate:
        """Estimate E[cost]; see the class.

        Raises:
            ValueError: With fewer than two dual prompts, or if the cost function returns something that is not a cost
                or is not finite (the message names the class and the prompt).
        """
        ordered = self._ordered(data, seed, epoch)
        found = self._answered(module, data, ordered[: self.prompts], seed, epoch)
        more = ordered[self.prompts : self._wanted(found)]
        if more:
            found = found.with_more(self._answered(module, data, more, seed, epoch))
        return self._estimate(found, len(ordered))

    def _answered(self, module: HasPair, data: HeldOut, chosen: Sequence[Prompt], seed: int, epoch: int) -> "_Answered":
        """Answers to all chosen prompts, equal on every rank."""
        jobs = [(prompt, sample) for prompt in chosen for sample in range(self.samples_per_prompt)]
        spread = functools.cache(functools.partial(self._spread, seed, epoch))
        costs, drifts, malformed = (Rows(len(jobs)) for _ in range(3))
        samples = list[ScoredResponse]()
        with quiet(module, hash64("rollout-pass", seed, epoch, rank_and_world()[0]), self.cost) as device:
            for batch in answers(
                module,
                data,
                jobs,
                lambda prompt, sample: spread(prompt.prompt_id)[sample],
                batch_size=self.batch_size,
                temperature=self.temperature,
                cost=self.cost,
            ):
                assert batch.cost is not None
                costs.put(batch, batch.cost)
                drifts.put(batch, self._drift(module, batch, device))
                malformed.put(batch, batch.malformed())
                samples += batch.scored()
            cost, drift, flags = (rows.everywhere(device) for rows in (costs, drifts, malformed))
        prompt_n = torch.tensor([prompt.prompt_id for prompt, _ in jobs])
        return _Answered(prompt_n, cost, drift, flags, tuple(samples[:SHOWN]))

    def _wanted(self, found: "_Answered") -> int:
        """Number of prompts with which the standard error is about ``stderr``, if costs vary as those of ``found``."""
        if self.stderr is None:
            return self.prompts
        # Stein 1945: the variance of a first part decides the size of the whole
        share = (found.mean.stderr / self.stderr).square().nan_to_num(0.0).max()  # NaN: the costs do not vary
        return math.ceil(found.prompts * float(share) - 1e-9)

    def _estimate(self, found: "_Answered", at_most: int) -> CostEstimate:
        count, (mean, stderr, bounds) = len(found.prompt_n), found.mean
        if self.stderr is not None and found.prompts == at_most and bool((stderr > STILL * self.stderr).any()):
            log.warning(
                "the standard error of the cost is %s with all %d prompts of the dual split, and %g was wanted: add "
                "prompts, or samples_per_prompt",
                ", ".join(f"{one:.3g}" for one in stderr.flatten().tolist()),
                at_most,
                self.stderr,
            )
        kl, entropy, logp, seen, tokens = found.drift.sum(0).tolist()
        truncated, empty = found.malformed.mean(0).tolist()
        total, within = spread_of(found.cost, found.prompt_n)
        unsafe_n = (found.cost > 0).reshape(count, -1).any(-1)
        return CostEstimate(
            mean,
            stderr,
            count,
            unsafe_n.double().mean(),
            float(count),
            {
                "drift/kl_per_token": kl / max(1, seen),
                "drift/entropy_per_token": entropy / max(1, seen),
                "drift/reference_logp_per_token": logp / max(1, seen),
                "drift/tokens_per_response": tokens / count,
                "dual/truncated": truncated,
                "dual/empty": empty,
                **unsafe_interval(unsafe_n, torch.ones(count, dtype=torch.float64), found.prompt_n),
            },
            found.samples,
            found.prompts,
            bounds,
            total,
            within if self.samples_per_prompt > 1 else None,
        )

    def check(self, data: HeldOut, constraints: int) -> None:
        """Score one labelled response of the dual split, to find errors before the first step.

        Raises:
            ValueError: If the scorer's card says that it ranks human labels too badly (``lit_safe.scorer_card``), there
                are fewer than two dual prompts, or the cost is not a tensor of finite numbers with one
                entry per constraint. Errors of the cost function itself, such as a missing file, are passed on.
        """
        check_scorer(self.cost)
        prompts = data.prompts("dual")
        if len(prompts) < 2:
            raise ValueError(f"the dual split has {len(prompts)} prompts, and an estimate needs two: add data")
        sequences = next(iter(data.dual_pairs())).sequences
        target_S = sequences.target[: int(sequences.cu_seqlens[1])]
        text = data.decode(target_S[target_S != IGNORE].tolist())
        with quiet(self.cost, hash64("rollout-check")):
            cost = score(self.cost, [prompts[0].text], [text])
        check_scores(self.cost, cost, ["a response of the dual split"])
        expected = [1] if constraints == 1 else [1, constraints]
        if list(cost.shape) != expected:
            raise ValueError(
                f"the cost function {name_of(self.cost)} gave {cost.tolist()} for one response: it must give costs of "
                f"shape {expected}, for {constraints} constraint{'s' if constraints > 1 else ''}"
            )

    def _ordered(self, data: HeldOut, seed: int, epoch: int) -> list[Prompt]:
        """The prompts of the dual split in the order in which they are answered."""
        draw = epoch if self.fresh_prompts else "every"
        prompts = sorted(
            data.prompts("dual"), key=lambda p: (hash64("rollout-prompt", seed, draw, p.prompt_id), p.prompt_id)
        )
        if not prompts:
            raise ValueError("the dual split has no prompts: add data")
        return prompts

    def _spread(self, seed: int, epoch: int, prompt_id: int) -> Tensor:
        """[samples, steps] in [0, 1): at each step, one uniform number in each of ``samples`` equal intervals."""
        count, shape = self.samples_per_prompt, (self.samples_per_prompt, self.max_new_tokens)
        within, order = (
            torch.stack([uniforms(shape[1], what, seed, epoch, prompt_id, sample) for sample in range(count)])
            for what in ("rollout", "rollout-order")
        )
        return ((order.argsort(0) + within) / count).clamp(max=1 - 2**-53)

    def _drift(self, module: HasPair, batch: Answers, device: torch.device) -> Tensor:
        """[n, 5]: KL, entropy, reference log-prob (nats) and measured tokens (0 if not measured); all tokens."""
        measured_n = torch.tensor([number < self.drift_samples_per_prompt for number in batch.number])
        tokens_n = batch.sizes()
        drift = torch.stack([torch.zeros_like(tokens_n)] * 3 + [tokens_n * measured_n, tokens_n], dim=-1)
        index = measured_n.nonzero()[:, 0].tolist()
        if index:
            sequences = pack_sequences([batch.prompt[i].ids for i in index], [batch.ids[i] for i in index])
            stats = module.pair.sequence_stats(move_data_to_device(sequences, device))
            drift[measured_n, :3] = torch.stack([stats.kl, stats.entropy, stats.reference_logp], dim=-1).cpu().double()
        return drift
