"""Where metrics go, in files that a resumed run continues exactly."""
