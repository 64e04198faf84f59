"""The commands of the command line. Each file defines one plain function."""
