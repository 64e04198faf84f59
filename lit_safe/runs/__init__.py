"""What a run leaves on disk: folder, lock, checkpoints and logs; and how it ends, is stopped and continues."""
