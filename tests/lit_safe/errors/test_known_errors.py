"""What other packages raise is told in our words: what, where it was typed, and what to try."""

import pickle

import pytest
import torch
from datasets.exceptions import DatasetNotFoundError
from safetensors import SafetensorError

from lit_safe.errors.exceptions import mistake
from lit_safe.errors.places import Words
from lit_safe.errors.tree import Problem, read

WORDS = Words(
    ["fit", "--model.pair.source.name_or_path", "org/model", "--data.sources.path", "org/rows", "--data.split", "tran"]
)
WORDS_OF_TRANSFORMERS = (
    "org/model is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'\n"
    "If this is a private repository, make sure to pass a token."
)
KNOWN = [
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB."),
        "out of memory",
        "micro_batch",
    ),
    (
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        "out of memory",
        "half",
    ),
    (OSError(WORDS_OF_TRANSFORMERS), "there is no model 'org/model'", "--model.pair.source.name_or_path"),
    (OSError("Can't load tokenizer for 'org/model'. If you were"), "org/model is no whole model", "config.json"),
    (
        OSError("org/model does not appear to have a file named config.json."),
        "org/model is no whole model",
        "tokenizer",
    ),
    (
        DatasetNotFoundError("Dataset 'org/rows' doesn't exist on the Hub"),
        "the data set 'org/rows' cannot be read",
        "hub",
    ),
    (ValueError("Unknown split \"tran\". Should be one of ['train', 'test']."), 'Unknown split "tran"', "try: train"),
    (
        ValueError("BuilderConfig 'mian' not found. Available: ['main', 'other']"),
        "BuilderConfig 'mian' not found",
        "try: main",
    ),
    (
        SafetensorError("Error while deserializing header: incomplete"),
        "a *.safetensors file is cut or damaged",
        "again",
    ),
    (EOFError("Ran out of input"), "a checkpoint cannot be read", "another checkpoint"),
    (pickle.UnpicklingError("invalid load key, 'h'."), "a checkpoint cannot be read", "another checkpoint"),
    (RuntimeError("PytorchStreamReader failed reading zip archive: x"), "a checkpoint cannot be read", "another"),
    (
        RuntimeError('Error(s) in loading state_dict for X:\n\tMissing key(s) in state_dict: "a"'),
        "the checkpoint holds another model",
        "config.yaml",
    ),
    (RuntimeError("Invalid device string: 'cuda:x'"), "Invalid device string", "cpu, cuda"),
    (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA", "cpu, cuda"),
    (PermissionError(13, "Permission denied", "runs/x"), "runs/x: Permission denied", ""),
]


@pytest.mark.parametrize(("error", "what", "also"), KNOWN, ids=[what for _, what, _ in KNOWN])
def test_a_known_error_of_another_package_is_told_in_our_words(error: Exception, what: str, also: str) -> None:
    message = mistake(error, WORDS)
    assert message is not None
    assert message.what.startswith(what)
    assert also in str(message)
    assert message.status == 1


UNKNOWN = [RuntimeError("shapes differ"), AssertionError(), ValueError("x"), KeyError("state"), EOFError()]


@pytest.mark.parametrize("error", UNKNOWN)
def test_an_unknown_error_of_another_package_keeps_its_traceback(error: Exception) -> None:
    assert mistake(error, WORDS) is None


def test_messages_of_jsonargparse_4_51_are_read_too() -> None:
    """The lowest version says of a class with a ``__call__`` what later ones say of every class."""
    start = (
        'Parser key "model":\n  Errors:\n'
        "    - Problem with given class_path 'lit_safe.training.module.PreferenceAlignment':\n"
        '        Parser key "objective":\n'
        "          - Type <class 'lit_safe.types.Objective'> expects a function or a callable class: "
    )
    unknown = read(
        start + "Option 'bata' is not accepted. Got value: Namespace(class_path='a.DPO', init_args=Namespace(bata='1'))"
    )
    assert unknown == Problem(("model", "objective"), "a.DPO", ("Option 'bata' is not accepted",), unknown.value, False)
    missing = read(start + "No module named 'x'. Got value: own.Mine")
    assert (missing.class_path, missing.texts) == ("own.Mine", ("No module named 'x'",))
    other = read(
        start + "Expected 'own.Mine' to be a class that instantiates into callable or a subclass of B.. Got value: C"
    )
    assert other.texts == ("Import path own.Mine does not implement protocol Objective",)
