"""Exported folders: the check that one equals its policy, and its model card."""
