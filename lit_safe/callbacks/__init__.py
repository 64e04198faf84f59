"""What a run does beside training: its folder, its checkpoints, its progress."""
