"""What Triton's compiler makes of the fused kernels on each kind of GPU, and so where ``auto`` may take them.

No kernel was timed for this table. The test is whether the compiler keeps everything in registers: where it spills them
into memory, and on GPUs that nobody compiled for, ``auto`` takes the next backend. ``tests/ops/test_fused_compiles.py``
compiles every line again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# compiled the table; torch 2.13.0 asks for it. For 9.0, 3.6.0 spills nothing either; 3.9.0 leaves 2 to 11 spill
# instructions where a head has a bias or a softcap
TRITON = "3.7.1"


class Compiled(NamedTuple):
    """The streaming kernel for a bare head of V = 128256, D = 4096 in bf16.

    Where it spills nothing, no kernel does for any form of a head.
    """

    product: str  # the instruction of its products
    spills: int  # instructions that load from or store to local memory


COMPILED = {  # compute capability: code
    (8, 0): Compiled("HMMA", 3758),
    (8, 6): Compiled("HMMA", 999),
    (8, 9): Compiled("HMMA", 999),
    (9, 0): Compiled("HGMMA", 0),
    (10, 0): Compiled("UTCHMMA", 0),
    (10, 3): Compiled("UTCHMMA", 0),
    (11, 0): Compiled("UTCHMMA", 0),
    (12, 0): Compiled("HMMA", 0),
    (12, 1): Compiled("HMMA", 0),
}


def unproven(hidden_TD: Tensor) -> str | None:
    """Why ``auto`` should not take the fused kernels on the device of these hidden states; None where it may."""
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
