"""Messages of at most six lines, and exit statuses, for a user's mistakes.

``parser.py`` shortens the parser's messages. ``exceptions.py`` distinguishes mistakes from faults in our code. Faults
keep their traceback. ``places.py`` finds the flag or the line of YAML that set a value. ``names.py`` finds the nearest
valid name.
"""
