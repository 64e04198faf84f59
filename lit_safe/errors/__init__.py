"""What the command line prints when a user made a mistake: at most six lines, and an exit status.

``parser.py`` shortens the parser's messages, ``exceptions.py`` tells mistakes from faults of our own code, which keep
their traceback. ``places.py`` finds the flag or the line of YAML that set a value, ``names.py`` the nearest valid name.
"""
