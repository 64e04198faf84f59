"""The help of one command: its important settings by purpose, a line each, without importing what the command needs.

``--help_all`` prints every setting, from the parser itself.
"""

import ast
import textwrap
from typing import NamedTuple

import docstring_parser

from lit_safe.installation import shipped_configs
from lit_safe.overview import LIGHTNING, command_functions, first_line

FILES = "-c configs/base.yaml --data DATA.yaml"
HELP, HELP_ALL = ("-h", "--help"), "--help_all"
WIDTH, COLUMN = 120, 50  # of a line, and of what stands before the texts


class Setting(NamedTuple):
    """A flag with a value that it accepts, and what it decides. An empty value is a flag that takes none."""

    flag: str
    value: str
    text: str


FIT: dict[str, tuple[Setting, ...]] = {
    "what trains": (
        Setting("-c", "configs/base.yaml", "settings from a YAML file; of several, a later one wins"),
        Setting("--model.pair", "configs/model/tiny.yaml", "policy and reference"),
        Setting("--model.objective", "configs/objective/c_dpo.yaml", "the loss"),
        Setting("--model.anchor", "configs/anchor/preferred_nll.yaml", "a term against drift from the reference"),
    ),
    "the data": (
        Setting("--data", "configs/data/scored.yaml", "pairs with their labels"),
        Setting("--data.pairs_per_step", "32", "pairs of an optimizer step (fine-tuning: rows_per_step)"),
        Setting("--data.micro_batch_tokens", "1024", "tokens of a forward pass; less needs less memory"),
        Setting("--data.max_length", "512", "most tokens of prompt and response together"),
        Setting("--data.order", "helpful", "which response is chosen"),
    ),
    "the limit on the cost, for C-DPO": (
        Setting("--dual.limit", "0", "largest acceptable E[cost], in cost units"),
        Setting("--dual.lr", "0.1", "step of the multiplier λ; 0 keeps it; or name a rule: --dual.controller"),
        Setting("--dual.margin", "0.05", "λ steers so far below the limit; auto plans it for a certificate"),
        Setting("--dual.estimator", "configs/cost/importance.yaml", "where E[cost] comes from"),
        Setting("--model.multiplier", "0.5", "where λ starts"),
    ),
    "how long, how fast": (
        Setting("--trainer.max_epochs", "3", "passes over the training pairs"),
        Setting("--trainer.max_steps", "1000", "or optimizer steps"),
        Setting("--model.optimizer.lr", "1e-6", "learning rate"),
        Setting("--model.gradient_clip_norm", "1.0", "bound on the gradient's norm"),
        Setting("--model.reference_cache_dir", "runs/reference", "keeps the reference's scores for many runs"),
    ),
    "where it computes": (
        Setting("--trainer.accelerator", "cpu", "cpu, gpu, mps; auto takes what there is"),
        Setting("--trainer.devices", "1", "how many; several need --trainer.strategy ddp"),
        Setting("--trainer.precision", "bf16-mixed", "matrix products in bf16; weights that train stay in fp32"),
    ),
    "the run": (
        Setting("--trainer.default_root_dir", "runs/first", "the run folder"),
        Setting("--ckpt_path", "last", "continue the run of the run folder"),
        Setting("--checkpoint.keep_best", "true", "also keep the best epoch that meets the limit"),
        Setting("--seed_everything", "5", "decides every random draw"),
    ),
}
"""The settings that people change, by purpose. A test types all of them."""

EVALUATION = {
    **{title: FIT[title] for title in ("what trains", "the data", "where it computes")},
    "the run": (
        FIT["the run"][0],
        Setting("--ckpt_path", "last", "the checkpoint to load: last, best, or a file"),
    ),
}
NOT_OF_EVALUATION = ("--model.anchor", "--data.pairs_per_step", "--data.micro_batch_tokens")

BUILT = {"module": "--model", "data": "--data", "trainer": "--trainer"}
"""Arguments of our commands that are built from the YAML files of a run, and their options."""


def wanted(words: list[str]) -> bool:
    """Whether a command line asks for the help of a command that has a short one."""
    return bool(words) and words[0] in {**LIGHTNING, **command_functions()} and any(word in HELP for word in words)


def short_help(program: str, command: str) -> str:
    """The text that ``COMMAND --help`` prints.

    Args:
        program: Name with which the program was called, such as ``lit-safe``.
        command: The command.
    """
    function = command_functions().get(command)
    everything = f"`{program} {command} {HELP_ALL}` lists every setting."
    if function is not None:
        return "\n".join([f"usage: {program} {command} {_usage(function)}", *_of_function(function), everything])
    groups = FIT if command == "fit" else EVALUATION
    return "\n".join(
        [
            f"usage: {program} {command} {FILES} [options]",
            "",
            LIGHTNING[command],
            "",
            *(line for title, settings in groups.items() for line in _group(title, settings, command)),
            f"{everything} `--model.objective.help CLASS` lists those of a class.",
            f"`{program} {command} --print_config` with your options prints the settings that would be used.",
        ]
    )


def _group(title: str, settings: tuple[Setting, ...], command: str) -> list[str]:
    shown = [one for one in settings if command == "fit" or one.flag not in NOT_OF_EVALUATION]
    lines = [f"{'what runs' if command != 'fit' and title == 'what trains' else title}:"]
    for one in shown:
        choices = _choices(one.value)
        lines.append(_line(f"{one.flag} {one.value}".rstrip(), one.text + (f": {choices}" if choices else "")))
    return [*lines, ""]


def _choices(value: str) -> str:
    """The names of the other files in the folder of a shipped YAML file."""
    folder, _, name = value.rpartition("/")
    names = [path.removeprefix(f"{folder}/").removesuffix(".yaml") for path in shipped_configs()]
    return ", ".join(one for one in names if "/" not in one) if name.endswith(".yaml") and "/" in folder else ""


def _line(left: str, right: str) -> str:
    """Two columns, within ``WIDTH``."""
    inner = " " * (COLUMN + 2)
    first = f"  {left:<{COLUMN - 1}} " if len(left) < COLUMN else f"  {left}\n{inner}"
    return first + textwrap.fill(right, WIDTH - len(inner)).replace("\n", f"\n{inner}")


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.args, *function.args.kwonlyargs]


def _usage(function: ast.FunctionDef) -> str:
    words = [f"{argument.arg.upper()} ..." for argument in _arguments(function) if _is_words(argument)]
    files = [FILES] if any(argument.arg in BUILT for argument in _arguments(function)) else []
    return " ".join([*files, *words, "[options]"])


def _of_function(function: ast.FunctionDef) -> list[str]:
    documented = docstring_parser.parse(ast.get_docstring(function) or "").params
    texts = {one.arg_name: " ".join((one.description or "").replace("``", "`").split()) for one in documented}
    lines = ["", first_line(function), "", "its own settings (one in capitals must be given):"]
    for argument, default in zip(_arguments(function), _defaults(function), strict=True):
        name = argument.arg
        if name not in BUILT:
            left = f"{name.upper()} ..." if _is_words(argument) else f"--{name} {default or name.upper()}"
            lines.append(_line(left, texts[name]))
    built = [BUILT[argument.arg] for argument in _arguments(function) if argument.arg in BUILT]
    named = f"{', '.join(built)}, and settings inside {'it' if len(built) == 1 else 'them'}, as in `fit`"
    return [*lines, "", *(["from the YAML files of a run (-c):", f"  {named}", ""] if built else [])]


def _defaults(function: ast.FunctionDef) -> list[str | None]:
    """The arguments' defaults as YAML writes them; None where one must be given."""
    absent = [None] * (len(function.args.args) - len(function.args.defaults))
    values = [*absent, *function.args.defaults, *function.args.kw_defaults]
    return [None if value is None else _as_yaml(ast.unparse(value)) for value in values]


def _as_yaml(source: str) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(source, source.strip("'\""))


def _is_words(argument: ast.arg) -> bool:
    return argument.annotation is not None and ast.unparse(argument.annotation) in ("list[str]", "Sequence[str]")
