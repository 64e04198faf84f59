"""The command line: LightningCLI's fit | validate | test | predict, and the commands in ``lit_safe.commands``.

Each of our commands is a plain function with typed keyword arguments. The arguments ``module``, ``data`` and
``trainer`` are built from the same YAML as for ``fit``. All other arguments are options of the command. No Trainer is
subclassed.
"""

import errno
import importlib
import inspect
import json
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
from lightning import LightningDataModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lit_safe.config_files import OF_FIT, read_yaml_with_shipped_files, with_shipped_files
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.errors.message import UsageExit
from lit_safe.errors.parser import SafeParser
from lit_safe.essentials import with_essentials
from lit_safe.protocols.data import missing_members
from lit_safe.protocols.trainer import connected
from lit_safe.runs.checkpoint_path import AUTO, newest_checkpoint, resolve_checkpoint
from lit_safe.runs.checkpoints import CheckpointError, glance
from lit_safe.runs.end_of_run import failures
from lit_safe.runs.progress_bar import Progress
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder, SaveConfig
from lit_safe.runs.run_lock import RunFolderError
from lit_safe.runs.run_seed import RunSeed, refuse_another_seed
from lit_safe.runs.signals import StopOnSignal, Stopped
from lit_safe.screen.lightning_lines import leave_out_lines
from lit_safe.training.stepping import StepModule

COMMANDS: tuple[str, ...] = (
    "doctor",
    "export",
    "compare",
    "annotate",
    "fit_scorer",
    "refusals",
    "evaluate",
    "reach",
    "profile",
    "sample",
    "certify",
    "report",
    "stages",
    "reproduce",
    "merge",
    "safe_patch",
    "configs",
)
"""Names of our commands: the function ``<name>`` is defined in ``lit_safe/commands/<name>.py``."""

FULL = (errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Error numbers that the system reports when a disk is full or read-only."""

BUILT = ("module", "data", "trainer")  # arguments of a command that are built from YAML


class SafeCLI(LightningCLI):
    """LightningCLI with a ``dual`` group and our commands. ``--ckpt_path`` never overrides typed settings."""

    _typed: Sequence[str] | None = None  # sys.argv, if it is what is parsed

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._seed = RunSeed()
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the callbacks that every run has: the dual step, checkpoints and progress."""
        parser.add_lightning_class_args(DualAscent, "dual")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Progress, "progress")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=self._seed)

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        group = parser._subcommands_action  # the action that LightningCLI's own loop adds to
        assert group is not None
        for name in COMMANDS:
            function = _command(name)
            summary = (inspect.getdoc(function) or "").partition("\n")[0]
            command_parser = self.init_parser(description=summary)
            if _builds(function):
                self._add_arguments(command_parser)
            words = _words(function)
            for word, (count, text) in words.items():
                command_parser.add_argument(word, nargs=count, type=str, help=text)
            skip: set[str | int] = {*BUILT, *words}
            added = command_parser.add_function_arguments(function, skip=skip, as_group=True, sub_configs=True)
            self._subcommand_parsers[name] = command_parser
            self._subcommand_method_arguments[name] = [*words, *added]
            group.add_subcommand(name, command_parser, help=summary)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse. A ``configs/...yaml`` that is missing in the working directory is read from the shipped files."""
        self._typed = sys.argv if args is None else None
        refuse_another_seed(sys.argv[1:] if args is None else args if isinstance(args, list) else [])
        if args is None:  # not passed on: LightningCLI would warn about arguments from two places
            self.config = parser.parse_args(with_shipped_files(sys.argv[1:]))
        elif isinstance(args, dict):  # the settings of a run: LightningCLI would warn about sys.argv here too
            self.config = parser.parse_object(args)
        else:
            super().parse_arguments(parser, with_shipped_files(args) if isinstance(args, list) else args)

    def instantiate_classes(self) -> None:
        """Build module, data and trainer. Build nothing for a command that takes none of them."""
        if self.subcommand in COMMANDS and not _builds(_command(str(self.subcommand))):
            self.config_init = self.parser.instantiate(self.config)
            return
        super().instantiate_classes()
        self.model.save_hyperparameters(self._typed_model())  # plain values, which a checkpoint can store
        if self.subcommand not in COMMANDS:  # our commands need less of the data
            self._check_data()
        self.datamodule.connect(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with the callbacks and loggers that every run needs."""
        configured = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        try:
            return self._instantiate_trainer(with_essentials(config, configured), [])
        except ValueError as error:
            raise SystemExit(str(error)) from None

    def _check_data(self) -> None:
        asks = self.model.data_protocol
        missing = missing_members(self.datamodule, asks)
        if missing:
            kind = type(self.datamodule)
            raise UsageExit(
                f"data: {kind.__module__}.{kind.__qualname__} has no {', '.join(missing)}, which "
                f"{type(self.model).__name__} needs ({asks.__module__}.{asks.__name__}): use another --data, or add "
                "them"
            )

    @property
    def _builds_nothing(self) -> bool:
        return self.subcommand in COMMANDS and not _builds(_command(str(self.subcommand)))

    def _set_seed(self) -> None:
        if self._builds_nothing:  # such a command has no seed and draws no random numbers
            return
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config["seed_everything"] is True:
            config["seed_everything"] = self._seed(True)
        super()._set_seed()

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand not in COMMANDS:
            self._run_trainer(subcommand)
            return
        function = _command(subcommand)
        options = {k: self.config_init[subcommand][k] for k in self._subcommand_method_arguments[subcommand]}
        built = {"module": getattr(self, "model", None), "data": getattr(self, "datamodule", None)}
        built["trainer"] = getattr(self, "trainer", None)
        wanted = inspect.signature(function).parameters
        try:
            status = function(**{k: v for k, v in built.items() if k in wanted}, **options)
        except CheckpointError as error:
            raise SystemExit(str(error)) from None
        except KeyboardInterrupt:
            logging.getLogger(__name__).error("stopped by Ctrl-C")
            status = 128 + signal.SIGINT
        if status:
            sys.exit(status)

    def _run_trainer(self, subcommand: str) -> None:
        """Run one of Lightning's commands in its run folder. Lock the folder before reading data or a model."""
        callbacks = connected(self.trainer).callbacks
        folders = [callback for callback in callbacks if isinstance(callback, RunFolder)]
        stops = [callback for callback in callbacks if isinstance(callback, StopOnSignal)]
        try:
            for stop in stops:
                stop.command = self._typed
                stop.install(self.trainer)
            if not _others_start_ranks(self.trainer):  # else, if this rank were refused, the others would wait for it
                for folder in folders:
                    folder.enter(self.trainer, subcommand, self.config[subcommand].get("ckpt_path"))
            super()._run_subcommand(subcommand)
        except Stopped:
            for stop in stops:
                stop.say(self.trainer)
            raise
        except (RunFolderError, CheckpointError) as error:
            raise SystemExit(str(error)) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise SystemExit(
                f"{error.filename or 'a file'} cannot be written ({error.strerror}): make room, then continue with "
                "--ckpt_path last"
            ) from None
        finally:
            for folder in folders:
                folder.leave("failed")
            for stop in stops:
                stop.restore()

    def after_fit(self) -> None:
        """Exit with status 1 if a step after training failed. Its error was printed, and the checkpoint is complete.

        Only on the first rank: Lightning kills it, in the middle of its closing lines, if another rank exits so.
        """
        if self.trainer.is_global_zero and failures(connected(self.trainer).callbacks):
            sys.exit(1)

    def _typed_model(self) -> dict[str, Any]:
        config = json.loads(self.parser.dump(self.config, skip_unset=False, format="json"))
        command = self.config.get("subcommand")
        return (config[command] if command else config)["model"]

    def _parse_ckpt_path(self) -> None:
        """Compare the checkpoint's model settings with the typed ones. Typed settings are never overridden.

        Continuing ``fit`` with other settings is refused: the checkpoint restores the optimizer and the schedule, so a
        typed learning rate would have no effect. Other commands print the differences and use the typed settings.
        """
        command = self.config.get("subcommand")
        path = self.config[command].get("ckpt_path") if command else None
        if not path or "trainer" not in self.config[command]:
            return
        try:
            folder = Path(self.config[command].trainer.default_root_dir or "")
            if path == AUTO and command == "fit":
                self.config[command]["ckpt_path"] = path = newest_checkpoint(folder)
            if path is None:
                return
            path = resolve_checkpoint(path, folder)
            stored = glance(path).get("hyper_parameters")
        except (ValueError, FileNotFoundError, CheckpointError) as error:
            raise SystemExit(str(error)) from None
        self.config[command]["ckpt_path"] = path
        if stored is None:
            return  # the checkpoint was written without the command line
        changes = list(differences(stored, self._typed_model()))
        if not changes:
            return
        listing = "\n".join(f"  model.{key}: checkpoint {old!r}, typed {new!r}" for key, old, new in changes)
        if command == "fit":
            raise UsageExit(
                f"{path} was made with other settings, and a continued run cannot change them:\n{listing}\n"
                "Type the checkpoint's settings, or start a new run from its export."
            )
        logging.getLogger(__name__).warning("%s was made with other settings; typed ones are used:\n%s", path, listing)


def differences(old: object, new: object, key: str = "") -> list[tuple[str, object, object]]:
    """Values in which two nested mappings differ, as (dotted key, old, new). A missing value is None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            change
            for name in dict.fromkeys([*old, *new])
            for change in differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if old == new else [(key, old, new)]


def _others_start_ranks(trainer: Trainer) -> bool:
    """Whether Slurm, torchrun or a similar launcher started this process as one of several ranks."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.world_size > 1 and not isinstance(environment, LightningEnvironment | None)


def _command(name: str) -> Callable[..., int | None]:
    function = getattr(importlib.import_module(f"lit_safe.commands.{name}"), name)
    assert callable(function)
    return function


def _known(words: ArgsType) -> tuple[str, ...]:
    """Options that the command in ``words`` shares with ``fit``."""
    typed = next((word for word in words if not word.startswith("-")), "") if isinstance(words, list) else ""
    if typed not in COMMANDS:
        return OF_FIT
    return tuple(name for name in OF_FIT if name in inspect.signature(_command(typed)).parameters)


def _builds(function: Callable[..., object]) -> bool:
    return any(name in inspect.signature(function).parameters for name in BUILT)


def _words(function: Callable[..., object]) -> dict[str, tuple[str, str]]:
    """Positional arguments of a command as name → (nargs, help), e.g. the folders of ``compare runs/*``."""
    documented = {
        p.arg_name: p.description or "" for p in docstring_parser.parse(inspect.getdoc(function) or "").params
    }
    counts = {list[str]: "+", Sequence[str]: "*"}  # a list needs at least one word, a sequence may be empty
    parameters = inspect.signature(function).parameters.values()
    return {p.name: (counts[p.annotation], documented[p.name]) for p in parameters if p.annotation in counts}


def main(args: ArgsType = None, run: bool = True) -> SafeCLI:
    """Parse ``args`` (``sys.argv`` by default), build the objects that they name, and run the command.

    Args:
        args: Command-line words, a dict or a Namespace.
        run: If False, only build the objects. ``args`` then contain no command.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "filelock", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    leave_out_lines()
    # Lightning 2.6 uses a class that torch 2.13 deprecates; a user cannot change that
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning)
    read_yaml_with_shipped_files(_known(sys.argv[1:] if args is None else args))
    return SafeCLI(**OPTIONS, args=args, run=run)


def parser_of_commands() -> SafeParser:
    """The parser of the whole command line. It builds and runs nothing."""
    read_yaml_with_shipped_files()
    parser = _OnlyParser(**OPTIONS).parser
    assert isinstance(parser, SafeParser)
    return parser


class _OnlyParser(SafeCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse a command that builds nothing."""
        self.config = parser.parse_args(["configs"])

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


OPTIONS: dict[str, Any] = {
    "model_class": StepModule,
    "datamodule_class": LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "save_config_callback": SaveConfig,
    "seed_everything_default": 0,
    "auto_configure_optimizers": False,
    "parser_kwargs": {"parser_mode": "yaml"},
    "parser_class": SafeParser,
}
