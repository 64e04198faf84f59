"""Loggers whose files a resumed run continues exactly."""
