"""The backends that run in any test: on a CPU, in fp32, at any width."""

import torch

from ops.sequence_logratio.api import BACKENDS

NARROW = torch.zeros(1, 7), torch.zeros(11, 7)
CPU_BACKENDS = [name for name, module in BACKENDS.items() if module.unsupported(*NARROW) is None]
BESIDE_THE_DEFINITION = [name for name in CPU_BACKENDS if name != "reference"]
