"""An import of a module's old name says where the module is now."""

import importlib
from importlib.util import find_spec

import pytest

from lit_safe.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_fails_with_the_new_one_which_exists(old: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"{old} has moved: it is now {MOVED[old]}$"):
        importlib.import_module(old)
    assert find_spec(MOVED[old]) is not None


def test_a_name_that_never_was_is_not_found_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'lit_safe\.never_was'"):
        importlib.import_module("lit_safe.never_was")
    with pytest.raises(ImportError, match=r"has moved: it is now lit_safe\.training\.module"):
        exec("from lit_safe import module", {})
