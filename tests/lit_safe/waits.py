"""Counts what a step asks of its device: operations, and the times that the host waits for a result."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lit_safe

OURS = str(Path(lit_safe.__file__).parent)
WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__"}


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    """Counts the calls in ``lit_safe`` that bring numbers to the host, by place. On a GPU each waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        caller = sys._getframe(1)
        if getattr(function, "__name__", "") in WAITS and caller.f_code.co_filename.startswith(OURS):
            self.seen[f"{Path(caller.f_code.co_filename).name}:{caller.f_code.co_name}"] += 1
        return function(*args, **(kwargs or {}))
