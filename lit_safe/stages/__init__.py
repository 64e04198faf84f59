"""Runs of several stages, each of which starts from the output of an earlier one."""
