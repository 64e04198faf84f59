"""Lets a model answer prompts: distributes jobs over ranks, uses named random draws, and checks costs.

Letters: J jobs, n of them in a batch, C constraints.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.execution.progress import progress
from lit_safe.execution.quiet import device_of
from lit_safe.execution.ranks import merge, rank_and_world
from lit_safe.protocols.pair import Responder
from lit_safe.rollouts.scoring import check_scores, place, score
from lit_safe.sequences import pack_sequences
from lit_safe.types import CostFunction, PackedSequences, Prompt, ScoredResponse

Job = tuple[Prompt, int]
"""A prompt and the number of its response."""

Draw = Callable[[Prompt, int], Tensor]
"""Gives the random numbers [max_new_tokens] in [0, 1) of a response, a hash of its prompt and number."""


class Answering(Protocol):
    """The part of the module that is used: its pair."""

    @property
    def pair(self) -> Responder:
        """The policy and its reference."""


class Decoding(Protocol):
    """The part of the data that is used: decoding ids to text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""


class Answers(NamedTuple):
    """Responses to one batch of jobs on this rank.

    ``turn`` is a job's index among all jobs. ``counts`` is False for a repeated job, which only makes all ranks run the
    same number of batches. ``complete`` is True if a response ended with a stop token. ``cost`` ([n] or [n, C] float64)
    is None without a cost function. ``text`` is None if neither costs nor texts were requested.
    """

    turn: list[int]
    counts: list[bool]
    prompt: list[Prompt]
    number: list[int]
    ids: list[list[int]]
    complete: list[bool]
    uniform: Tensor  # [n, max_new_tokens]
    text: list[str] | None = None
    cost: Tensor | None = None

    def packed(self, device: torch.device) -> PackedSequences:
        """Prompts and responses as sequences to score."""
        return move_data_to_device(pack_sequences([p.ids for p in self.prompt], self.ids), device)

    def sizes(self) -> Tensor:
        """[n] float64: tokens of each response, the stop token included."""
        return torch.tensor([len(ids) for ids in self.ids], dtype=torch.float64)

    def malformed(self) -> Tensor:
        """[n, 2] float64: 1 if a response was cut before its stop token, and 1 if it has no text, else 0."""
        assert self.text is not None
        pairs = zip(self.complete, self.text, strict=True)
        return torch.tensor([[not complete, not text.strip()] for complete, text in pairs], dtype=torch.float64)

    def scored(self) -> list[ScoredResponse]:
        """Texts with their costs, without repeated jobs."""
        assert self.text is not None
        assert self.cost is not None
        rows = zip(self.counts, self.prompt, self.text, self.cost.reshape(len(self.text), -1).tolist(), strict=True)
        return [ScoredResponse(prompt.text, text, tuple(cost)) for counts, prompt, text, cost in rows if counts]


def answers(
    module: Answering,
    data: Decoding,
    jobs: Sequence[Job],
    draw: Draw,
    *,
    batch_size: int,
    temperature: float = 1.0,
    reference: bool = False,
    cost: CostFunction | None = None,
    texts: bool = False,
    what: str = "batch of responses",
) -> Iterator[Answers]:
    """Answer this rank's jobs, batch by batch. Call this inside ``lit_safe.execution.quiet.quiet``.

    A response depends only on its random numbers and the model, not on batches or ranks. Ranks with fewer jobs repeat
    some, so all ranks run the same number of batches. Repeated results are ignored.

    Args:
        module: The module whose pair answers.
        data: Decodes ids.
        jobs: The jobs of all ranks together; the same list on each rank.
        draw: Gives the random numbers of each response.
        batch_size: Number of responses generated at once.
        temperature: Divides the logits.
        reference: Whether the reference answers instead of the policy.
        cost: Scores the texts, or None.
        texts: Whether to decode the responses even without a cost function.
        what: Description for the progress bar.

    Raises:
        ValueError: If the cost function returns something that is not a cost. The message names its class and the
            prompt.
    """
    if cost is not None:
        place(cost, device_of(module))
    rank, world = rank_and_world()
    places = range(rank, -(-len(jobs) // world) * world, world)
    stops = module.pair.stop_tokens()
    constraints: torch.Size | None = None
    for start in progress(range(0, len(places), batch_size), what):
        part = places[start : start + batch_size]
        turn = [place % len(jobs) for place in part]
        prompts, numbers = (list(side) for side in zip(*(jobs[t] for t in turn), strict=True))
        uniform = torch.stack([draw(prompt, number) for prompt, number in zip(prompts, numbers, strict=True)])
        ids = module.pair.generate([p.ids for p in prompts], uniform, temperature, reference)
        text = [data.decode(response) for response in ids] if texts or cost is not None else None
        costs = None
        if cost is not None and text is not None:
            costs = score(cost, [p.text for p in prompts], text)
            check_scores(cost, costs, [f"a response to prompt {p.prompt_id}" for p in prompts])
            if constraints not in (None, costs.shape[1:]):
                raise ValueError(
                    f"the cost function gave rows of {list(costs.shape[1:])} after rows of {list(constraints)}"
                )
            constraints = costs.shape[1:]
        yield Answers(
            turn,
            [place < len(jobs) for place in part],
            prompts,
            numbers,
            ids,
            [bool(response) and response[-1] in stops for response in ids],
            uniform,
            text,
            costs,
        )


class Rows:
    """A table [J, ...] whose rows are filled by several ranks.

    Args:
        count: J, the number of jobs of all ranks.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows: Tensor | None = None

    def put(self, batch: Answers, rows: Tensor) -> None:
        """Store the rows [n, ...] of a batch, on any device. Rows of repeated jobs are ignored."""
        rows = rows.detach().cpu()
        if self._rows is None:
            self._rows = rows.new_zeros(self._count, *rows.shape[1:])
        for turn, counts, row in zip(batch.turn, batch.counts, rows, strict=True):
            if counts:
                self._rows[turn] = row

    def everywhere(self, device: torch.device) -> Tensor:
        """The rows of all ranks, bitwise equal on each. The exchange uses ``device``."""
        assert self._rows is not None
        return merge(self._rows, device)
