"""Messages for errors from other packages: models, data sets, checkpoints, devices, memory, disks."""

import os
import re
from collections.abc import Callable

from lit_safe.errors import names
from lit_safe.errors.message import FAILED, Message
from lit_safe.errors.places import Words

Explained = Callable[[BaseException, Words], Message]

NETWORK = "a name of the hub, a local folder (./folder), or a connection; HF_HUB_OFFLINE=1 allows cached files alone"
MEMORY = "half of --data.micro_batch_tokens, or of --data.max_length; `doctor` estimates the memory of both"


def known(error: BaseException, words: Words) -> Message | None:
    """The message for an exception from another package. None if the exception is not in the table."""
    kind = type(error).__name__
    text = str(error)
    for kinds, pattern, explained in TABLE:
        if (not kinds or kind in kinds) and re.search(pattern, text, re.DOTALL):
            return explained(error, words)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return _file(error, words)
    return None


def _file(error: OSError, words: Words) -> Message:
    path = os.fsdecode(error.filename)
    near = " or ".join(names.nearest_files(path)) if isinstance(error, FileNotFoundError) else ""
    return Message(f"{path}: {error.strerror}", words.of_value(path), near, FAILED)


def _memory(error: BaseException, words: Words) -> Message:
    return Message(f"out of memory: {_first_sentence(error)}", instead=MEMORY, status=FAILED)


def _hub_model(error: BaseException, words: Words) -> Message:
    named = _named(str(error), words)
    return Message(
        f"there is no model {named!r}, neither as a folder nor on the hub", words.of_value(named), NETWORK, FAILED
    )


def _incomplete_model(error: BaseException, words: Words) -> Message:
    named = _named(str(error), words)
    advice = "a folder with config.json, weights in *.safetensors and the tokenizer's files, as `export` writes it"
    return Message(
        f"{named or 'the model'} is no whole model: {_first_sentence(error)}", words.of_value(named), advice, FAILED
    )


def _data_set(error: BaseException, words: Words) -> Message:
    named = _named(str(error), words)
    return Message(
        f"the data set {named!r} cannot be read: {_first_sentence(error)}", words.of_value(named), NETWORK, FAILED
    )


def _choice(error: BaseException, words: Words) -> Message:
    text = str(error)
    typed = re.search(r"(?:Unknown split|BuilderConfig) ['\"]([^'\"]*)['\"]", text)
    there = re.findall(r"['\"]([^'\"]+)['\"]", text.partition("[")[2] or text.partition("Available:")[2])
    named = typed[1] if typed else ""
    return Message(_first_sentence(error), words.of_value(named), names.suggestion(named, there), FAILED)


def _state(error: BaseException, words: Words) -> Message:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = "the checkpoint holds another model than --model names: " + " ".join(lines[1:2])
    return Message(what, instead="the --model settings of the run, which its config.yaml holds", status=FAILED)


def _device(error: BaseException, words: Words) -> Message:
    return Message(_first_sentence(error), words.mentioned(str(error)), "cpu, cuda, cuda:0 or mps", FAILED)


def _torch_file(error: BaseException, words: Words) -> Message:
    what = f"a checkpoint cannot be read, it is cut or no file of torch.save: {_first_sentence(error)}"
    return Message(what, words.find(("ckpt_path",)), "another checkpoint of the run, e.g. its step-*.ckpt", FAILED)


def _safetensors(error: BaseException, words: Words) -> Message:
    what = f"a *.safetensors file is cut or damaged: {_first_sentence(error)}"
    return Message(what, instead="write or download the model's folder again", status=FAILED)


def _not_utf8(error: BaseException, words: Words) -> Message:
    return Message(
        f"a text file is not UTF-8: {_first_sentence(error)}", instead="save the file as UTF-8", status=FAILED
    )


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[a-z)'\"])\. (?=[A-Z])", text)[0]


def _named(text: str, words: Words) -> str:
    """The model or data set of an error: a typed name or path, preferably one that the text contains."""
    typed = [
        s.value for s in words.settings() if s.value and s.keys[-1:] in (("name_or_path",), ("path",), ("source",))
    ]
    said = [value for value in typed if value in text]
    models = [s.value for s in words.settings() if s.value and s.keys[-1:] == ("name_or_path",)]
    return next(iter([*reversed(said), *reversed(models)]), "")


TABLE: tuple[tuple[tuple[str, ...], str, Explained], ...] = (
    (("OutOfMemoryError", "MemoryError"), "", _memory),
    (("RuntimeError",), "out of memory|can't allocate memory", _memory),
    (("DatasetNotFoundError", "DataFilesNotFoundError"), "", _data_set),
    (("ValueError",), "^Unknown split|^BuilderConfig ", _choice),
    (("ConnectionError",), "^Couldn't reach", _data_set),
    (
        (),
        "is not a valid model identifier|not a local folder|Repo id must|Repository Not Found|couldn't connect to "
        "'https://huggingface|Cannot find an appropriate cached snapshot|offline mode is enabled|"
        "Incorrect path_or_model_id",
        _hub_model,
    ),
    (
        ("OSError", "ValueError", "EnvironmentError"),
        "does not appear to have a file named|Error no file named|Can't load (tokenizer|the)|Unrecognized model in|"
        "It looks like the config file|sentencepiece or tiktoken|Couldn't instantiate the backend tokenizer",
        _incomplete_model,
    ),
    (("SafetensorError",), "", _safetensors),
    (("UnpicklingError",), "", _torch_file),
    (("EOFError",), "Ran out of input", _torch_file),  # other texts: a process whose partner ended
    (("RuntimeError",), "PytorchStreamReader|PyTorchStreamReader|failed finding central directory", _torch_file),
    (("RuntimeError",), r"^Error\(s\) in loading state_dict", _state),
    (
        ("RuntimeError",),
        "device type at start of device string|Invalid device|No CUDA GPUs|invalid device ordinal",
        _device,
    ),
    (("AssertionError", "RuntimeError"), "not compiled with CUDA|Found no NVIDIA driver", _device),
    (("UnicodeDecodeError",), "", _not_utf8),
)
"""(class names, or () for any; pattern of the text; function for the message). The first match is used."""
