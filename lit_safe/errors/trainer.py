"""Messages for settings that Lightning's Trainer refuses, with the setting to use instead."""

import re

from lit_safe.errors import names
from lit_safe.errors.message import FAILED, USAGE, Message
from lit_safe.errors.places import Words

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
LAUNCHED = "--trainer.devices and --trainer.num_nodes as the launcher starts: processes on a machine, and machines"
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")

TABLE: tuple[tuple[str, str, str, str, int], ...] = (
    ("invalid accelerator name", "accelerator", "there is no accelerator {value}", ", ".join(ACCELERATORS), USAGE),
    (
        "No supported gpu backend|MPSAccelerator|CUDAAccelerator.*can not run",
        "accelerator",
        "this machine has no such device for torch: accelerator {value}",
        "--trainer.accelerator cpu, or auto for what is there",
        FAILED,
    ),
    ("torch_xla", "accelerator", "", "--trainer.accelerator cpu, or auto for what is there", FAILED),
    ("invalid strategy name", "strategy", "there is no strategy {value}", ", ".join(STRATEGIES), USAGE),
    ("requires a GPU accelerator", "strategy", "", "--trainer.strategy auto or ddp", USAGE),
    (
        "[Dd]eep[Ss]peed installed",
        "strategy",
        "trainer.strategy {value} of Lightning is not supported",
        "-c configs/trainer/deepspeed_zero2.yaml, or -c configs/trainer/fsdp2.yaml, which divides weights too",
        USAGE,
    ),
    ("Lightning, but the product|number of nodes configured", "num_nodes", "", LAUNCHED, USAGE),
    ("Lightning, but the number of tasks", "devices", "", LAUNCHED, USAGE),
    ("requested gpu|DeviceIndices", "devices", "", "as many devices as the machine has, or auto", FAILED),
    ("[Dd]evices", "devices", "{value} is not a value of trainer.devices", "a whole number >= 1, or auto", USAGE),
    ("val_check_interval", "val_check_interval", "", "a smaller number, or a share of an epoch in (0, 1]", USAGE),
)
"""(pattern, key under trainer, message or "" for Lightning's own, correct alternative, exit status)."""

CHOICES = {"accelerator": ACCELERATORS, "strategy": STRATEGIES}


def trainer_mistake(text: str, words: Words) -> Message | None:
    """The message for an error of the Trainer. None if the error is not in the table."""
    if found := re.search(r"on metric `(.*?)` which is not available.*following: (.*)", text):
        there = re.findall(r"`([^`]+)`", found[2])
        what = f"no metric {found[1]!r} is logged, which a callback monitors"
        return Message(what, words.of_value(found[1]), names.suggestion(found[1], there, ", ".join(there)))
    for pattern, key, what, instead, status in TABLE:
        if not re.search(pattern, text):
            continue
        typed = [setting for setting in words.settings() if setting.keys == ("trainer", key)]
        value = str(typed[-1].value) if typed else ""
        near = names.nearest(value, CHOICES.get(key, ()), 1)
        if near and near[0] != value:
            instead = f"{near[0]} (one of {instead})"
        said = what.format(value=repr(value)) if what else text
        return Message(said, typed[-1].place if typed else "", instead, status)
    return None
