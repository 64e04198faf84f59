"""Commands of the command line: one plain function a file."""
