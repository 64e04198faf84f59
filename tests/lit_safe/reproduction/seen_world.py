"""What a reproduction measured, by hand: two seeds, four prompts."""

from lit_safe.reproduction.measured import Cells, Seen


def cells(*seeds: list[float]) -> Cells:
    return {(seed, prompt): value for seed, row in enumerate(seeds) for prompt, value in enumerate(row)}


def seen() -> Seen:
    """SafeDPO is safe at every prompt; DPO-HELPFUL has the larger reward; both seeds nearly agree."""
    return Seen(
        {
            "sft": {
                "reward": cells([0.0, 1, 2, 1], [0.0, 1, 2, 1.1]),
                "unsafe": cells([1, 0.5, 0, 0.5], [1, 0.5, 0, 0.5]),
            },
            "dpo_helpful": {
                "reward": cells([2.0, 3, 4, 3], [2.0, 3, 4, 3.1]),
                "unsafe": cells([1, 1, 0, 1], [1, 1, 0, 1]),
            },
            "safe_dpo": {
                "reward": cells([1.0, 2, 3, 2], [1.0, 2, 3, 2.1]),
                "unsafe": cells([0, 0, 0, 0], [0, 0, 0, 0]),
                "cost": cells([-1, -1, -1, -2], [-1, -1, -1, -2]),
            },
        },
        {"safe_dpo": {"cost": 0.5}},
        {"safe_dpo": [60.0, 62.0]},
    )
