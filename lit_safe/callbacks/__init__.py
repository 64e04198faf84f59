"""Callbacks for the run folder, checkpoints, progress, signals and reports."""
