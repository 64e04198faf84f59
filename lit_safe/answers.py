"""The one way to let a model answer prompts: turns over ranks, draws by name, costs that are checked.

Letters: J jobs, n of them in a batch, C constraints.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.costs.scoring import check_finite, place, score
from lit_safe.progress import progress
from lit_safe.quiet import device_of
from lit_safe.ranks import merge, rank_and_world
from lit_safe.sequences import pack_sequences
from lit_safe.types import CostFunction, PackedSequences, PairModel, Prompt, ScoredResponse

Job = tuple[Prompt, int]
"""A prompt and the number of its response."""

Draw = Callable[[Prompt, int], Tensor]
"""The random numbers [max_new_tokens] in [0, 1) of one response: a hash of what it is for."""


class Answering(Protocol):
    """What is known of the module: its pair."""

    pair: PairModel


class Decoding(Protocol):
    """What is known of the data: how ids read as text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""


class Answers(NamedTuple):
    """Responses to one batch of jobs on this rank.

    ``turn`` is a job's place among all jobs. ``counts`` is False for a job that another turn has as well: it only
    makes all ranks run as many batches. ``complete`` says that a response ended with a stop token. ``text`` and
    ``cost`` ([n] or [n, C] float64) are None where no cost function was given and no text asked for.
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

    def scored(self) -> list[ScoredResponse]:
        """Texts with their costs, of the jobs that count."""
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
    """Answer this rank's share of the jobs, batch by batch; to be called inside ``lit_safe.quiet.quiet``.

    A response is a function of its draw and the model: neither batches nor ranks decide it. Every rank has as many
    batches, where a job that is done twice counts once.

    Args:
        module: Whose pair answers.
        data: Decodes.
        jobs: What all ranks answer together; alike on each.
        draw: The random numbers of each response.
        batch_size: Responses generated at once.
        temperature: Divides the logits.
        reference: Let the reference answer.
        cost: Scores the texts.
        texts: Decode responses, without scoring them.
        what: For the progress bar.

    Raises:
        ValueError: If the cost function returns something that is no cost; its class and the prompt are named.
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
            check_finite(cost, costs, [f"a response to prompt {p.prompt_id}" for p in prompts])
            if constraints not in (None, costs.shape[1:]):
                raise ValueError(f"the cost function gave rows of {list(costs.shape[1:])} after {list(constraints)}")
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
    """A table [J, ...] that ranks fill in turn.

    Args:
        count: J, the jobs of all ranks.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows: Tensor | None = None

    def put(self, batch: Answers, rows: Tensor) -> None:
        """Rows [n, ...] of a batch, on any device; those that do not count are left out."""
        rows = rows.detach().cpu()
        if self._rows is None:
            self._rows = rows.new_zeros(self._count, *rows.shape[1:])
        for turn, counts, row in zip(batch.turn, batch.counts, rows, strict=True):
            if counts:
                self._rows[turn] = row

    def everywhere(self, device: torch.device) -> Tensor:
        """The rows of all ranks, alike to the bit on each; ranks meet on ``device``."""
        assert self._rows is not None
        return merge(self._rows, device)
