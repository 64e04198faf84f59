"""Trainings in the oracle world, compared with their optima: what `python -m data.oracle.run` runs and reports."""

from data.oracle.study.folder import Study
from data.oracle.study.job import Job

__all__ = ["Job", "Study"]
