"""Leaves out lines of Lightning that say nothing about a run: our own opening names the device."""

import logging

LINES = ("GPU available: ", "TPU available: ", "💡 Tip: For seamless cloud logging", "Seed set to ")
"""Beginnings of the lines that are left out. Warnings always pass."""

LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")


def leave_out_lines() -> None:
    """Leave out ``LINES``, once, whatever handlers there are."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if _says_something not in logger.filters:
            logger.addFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not record.getMessage().startswith(LINES)
