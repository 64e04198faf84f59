"""Checks and measures a machine with a CUDA device: ``make gpu``, or ``python -m models.gpu``."""
