"""Aligns a language model to preferences under a safety limit. Importing this package alone loads no other library."""

import sys

from lit_safe.moved import Moved

sys.meta_path.append(Moved)
