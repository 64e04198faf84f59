"""Results of compiling the fused kernels for each kind of GPU, which decide where ``auto`` uses them.

This table contains no timings. The criterion is register spills: if the compiler spills registers to memory, and on
GPUs for which nothing was compiled, ``auto`` takes the next backend. ``tests/ops/test_fused_compiles.py`` compiles
every entry again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# the version that compiled the table; torch 2.13.0 requires it. For 9.0, 3.6.0 spills nothing either; 3.9.0 has 2 to 11
# spill instructions for a head with a bias or a softcap
TRITON = "3.7.1"


class Compiled(NamedTuple):
    """The streaming kernel for a head without bias or softcap, V = 128256, D = 4096, in bf16.

    If it spills nothing, no kernel does for any form of a head.
    """

    product: str  # the instruction of its products
    spills: int  # instructions that load from or store to local memory


COMPILED = {  # compute capability: code
    (8, 0): Compiled("HMMA", 3990),
    (8, 6): Compiled("HMMA", 1056),
    (8, 9): Compiled("HMMA", 1056),
    (9, 0): Compiled("HGMMA", 0),
    (10, 0): Compiled("UTCHMMA", 0),
    (10, 3): Compiled("UTCHMMA", 0),
    (11, 0): Compiled("UTCHMMA", 0),
    (12, 0): Compiled("HMMA", 0),
    (12, 1): Compiled("HMMA", 0),
}


def unproven(hidden_TD: Tensor) -> str | None:
    """Why ``auto`` should not use the fused kernels on the device of these hidden states; None if it may."""
    if not hidden_TD.is_cuda:
        return None
    if torch.version.hip is not None:
        return "its kernels were compiled for NVIDIA GPUs alone"
    capability = torch.cuda.get_device_capability(hidden_TD.device)
    name = "{}.{}".format(*capability)
    if capability not in COMPILED:
        return f"its kernels were not compiled for compute capability {name}"
    spills = COMPILED[capability].spills
    return f"its code for compute capability {name} spills registers ({spills} instructions)" if spills else None
