"""Estimates E[cost] from fresh responses of the current policy, as C-DPO's dual step requires."""

import functools

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.constraint.costs import HeldOut
from lit_safe.constraint.costs.mean import mean_cost, spread_of, unsafe_interval
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import rank_and_world
from lit_safe.hashing import hash64, uniforms
from lit_safe.protocols.pair import HasPair
from lit_safe.rollouts.answers import Answers, Rows, answers
from lit_safe.rollouts.scoring import check_scores, name_of, score
from lit_safe.scorer_card import check_scorer
from lit_safe.sequences import pack_sequences
from lit_safe.types import IGNORE, CostEstimate, CostFunction, Prompt, ScoredResponse

SHOWN = 8  # samples kept for people to read


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

    Raises:
        ValueError: If a count or the temperature is not positive, or ``prompts`` is 1 (no standard error).
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
        chosen = self._choose(data, seed, epoch)
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
            cost, drift = costs.everywhere(device), drifts.everywhere(device)
            truncated, empty = malformed.everywhere(device).mean(0).tolist()
        kl, entropy, logp, seen, tokens = drift.sum(0).tolist()
        prompt_n = torch.tensor([prompt.prompt_id for prompt, _ in jobs])
        one_n = torch.ones(len(jobs), dtype=torch.float64)
        mean, stderr, bounds = mean_cost(cost, one_n, prompt_n)
        total, within = spread_of(cost, prompt_n)
        unsafe_n = (cost > 0).reshape(len(jobs), -1).any(-1)
        return CostEstimate(
            mean,
            stderr,
            len(jobs),
            unsafe_n.double().mean(),
            float(len(jobs)),
            {
                "drift/kl_per_token": kl / max(1, seen),
                "drift/entropy_per_token": entropy / max(1, seen),
                "drift/reference_logp_per_token": logp / max(1, seen),
                "drift/tokens_per_response": tokens / len(jobs),
                "dual/truncated": truncated,
                "dual/empty": empty,
                **unsafe_interval(unsafe_n, one_n, prompt_n),
            },
            tuple(samples[:SHOWN]),
            len(chosen),
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

    def _choose(self, data: HeldOut, seed: int, epoch: int) -> list[Prompt]:
        draw = epoch if self.fresh_prompts else "every"
        prompts = sorted(
            data.prompts("dual"), key=lambda p: (hash64("rollout-prompt", seed, draw, p.prompt_id), p.prompt_id)
        )
        if not prompts:
            raise ValueError("the dual split has no prompts: add data")
        return prompts[: self.prompts]

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
