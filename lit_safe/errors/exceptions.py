"""Distinguishes a user's mistake from a fault of our own code, by where and how an exception was raised."""

import dis
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType

from lit_safe.errors import names
from lit_safe.errors.known import known
from lit_safe.errors.message import FAILED, USAGE, Message, SettingError
from lit_safe.errors.places import Words
from lit_safe.errors.rows import columns_of
from lit_safe.errors.trainer import trainer_mistake
from lit_safe.installation import PACKAGES, root

PURPOSEFUL = (ValueError, TypeError, ArithmeticError, RuntimeError, OSError, ImportError)
"""Types of exceptions that our code raises on purpose. Other types are faults."""

FAULT = "fault_of_another_rank"
"""Attribute of an error that ``lit_safe.execution.ranks`` raises for another rank, if it is a fault there."""

LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities")
FRAMEWORKS = (*LIGHTNING, "torch", "transformers", "peft")
"""Packages whose errors are shown in one line if they were raised by a check of a setting."""


BUILDERS = ("instantiate_classes", "instantiate_trainer")
"""Methods of the command line that build objects from settings."""


def mistake(error: BaseException, words: Words) -> Message | None:
    """The message for a user's mistake. None for a fault, whose traceback should be shown."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, PURPOSEFUL) and _raised(one, _ours) and FAULT not in vars(one):
            return _of_ours(one, words)
    for one in chain:
        if (message := known(one, words)) is not None:
            return message
    for one in chain:
        if _raised(one, _of_framework) and (message := trainer_mistake(str(one), words)) is not None:
            return message
    for one in chain:
        if _raised(one, _of_framework) and (_is_advice(one) or (isinstance(one, PURPOSEFUL) and _building(one))):
            return Message(_plain(one), words.mentioned(str(one)) or words.only_with_value_in(str(one)), _see(), USAGE)
    for one in chain:
        if isinstance(one, TypeError | ValueError) and _building(one) and _package(_frames(one)[-1]) == "jsonargparse":
            return Message(_plain(one), words.mentioned(str(one)) or words.only_with_value_in(str(one)), _see(), USAGE)
    return None


def is_fault(error: Exception) -> bool:
    """Whether the error is a fault, as far as this can be seen without the command's settings. Never raises."""
    try:
        return mistake(error, Words([])) is None
    except Exception:  # an error about an error must not replace it
        return True


def _of_ours(error: BaseException, words: Words) -> Message:
    building = _building(error)
    text = _plain(error)
    names_of = _arguments(error) if building else re.findall(r"\w+", text) if isinstance(error, SettingError) else None
    where = words.mentioned(text, names_of)
    instead = ""
    if found := re.match(r"([^\s:\[]+)(?:\[\w+\])?: ", text):
        where = words.of_value(found[1]) or where
    if found := re.search(r"(\S+): [Nn]o such file", text):
        where = words.of_value(found[1]) or where
        instead = " or ".join(names.nearest_files(found[1]))
    if found := re.match(r"row (.+):\d+, column '([^']+)': is null or missing", text):
        where = words.of_value(found[2])
        instead = names.suggestion(found[2], columns_of(found[1]))
    status = USAGE if building or isinstance(error, SettingError) else FAILED
    return Message(text, where, instead, status)


def _plain(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _see() -> str:
    return "LIT_SAFE_TRACEBACK=1 shows where this was raised"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes, outermost first."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__


def _frames(error: BaseException) -> list[FrameType]:
    return [trace.tb_frame for trace in _traces(error)]


def _traces(error: BaseException) -> list[TracebackType]:
    found = []
    trace = error.__traceback__
    while trace is not None:
        found.append(trace)
        trace = trace.tb_next
    return found


def _raised(error: BaseException, place: Callable[[FrameType], bool]) -> bool:
    """Whether the exception comes from a ``raise`` statement in a frame for which ``place`` is true."""
    traces = _traces(error)
    if not traces:
        return False
    last = traces[-1]
    operation = last.tb_frame.f_code.co_code[last.tb_lasti]
    return operation == dis.opmap["RAISE_VARARGS"] and place(last.tb_frame)


def _ours(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    if not path.is_absolute():
        return False
    folders = [root() / name for name in (*PACKAGES, "lit_safe")] + [Path(__file__).parents[1]]
    return any(path.is_relative_to(folder) for folder in folders)


def _of_framework(frame: FrameType) -> bool:
    return _package(frame) in FRAMEWORKS


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _building(error: BaseException) -> bool:
    """Whether the exception was raised while objects were built from settings."""
    places = [(str(frame.f_globals.get("__name__")), frame.f_code.co_name) for frame in _frames(error)]
    return any(module == "jsonargparse._instantiation" or function in BUILDERS for module, function in places)


def _is_advice(error: BaseException) -> bool:
    """Whether Lightning reports that settings do not fit each other, or do not fit this machine."""
    last = _frames(error)[-1]
    return "Misconfiguration" in type(error).__name__ or (isinstance(error, ValueError) and _package(last) in LIGHTNING)


def _arguments(error: BaseException) -> list[str]:
    """Names of the arguments of the object that was being built."""
    last = _frames(error)[-1]
    owner = last.f_locals.get("self")
    return names.parameters(type(owner)) if owner is not None else list(last.f_code.co_varnames)
