"""Finds the valid names (options, classes, files) that are nearest to a misspelt one."""

import ast
import difflib
import importlib.util
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from lit_safe import installation

SHOWN = 3
"""Maximum number of names in a suggestion."""

CLOSE = 0.1
"""How much lower the similarity of a further suggestion may be than that of the first."""

HOMES = {
    "optimizer": ("torch.optim",),
    "callbacks": ("lightning.pytorch.callbacks",),
    "logger": ("lightning.pytorch.loggers",),
}
"""Modules of other packages with classes for a setting."""

KEY_OF_FOLDER = {"model": "pair", "cost": "estimator"}
"""Folder of shipped YAML files → key of the setting, if the names differ."""


def nearest(word: str, names: Iterable[str], count: int = SHOWN) -> list[str]:
    """The names most similar to ``word``, best first; [] if none is similar. Ignores case, ``_`` and ``-``."""
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    wanted = _plain(word)
    found = difflib.get_close_matches(wanted, plain, n=count, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, wanted, name).ratio() for name in found]
    return [plain[name] for name, like in zip(found, likeness, strict=True) if like > likeness[0] - CLOSE]


def suggestion(word: str, names: Sequence[str], otherwise: str = "") -> str:
    """``a or b``: the nearest names. If there are none: all names if they are few, else ``otherwise``."""
    found = nearest(word, names)
    if found:
        return " or ".join(found)
    return f"one of {', '.join(names)}" if 0 < len(names) <= 12 else otherwise


def parameters(cls: type) -> list[str]:
    """Names of a class's arguments, with those of its bases if it takes ``**kwargs``."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if init is None or base is object:
            continue
        try:
            found = list(inspect.signature(init).parameters.values())[1:]
        except (TypeError, ValueError):
            break
        named = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        names |= dict.fromkeys(p.name for p in named)
        if not any(p.kind == p.VAR_KEYWORD for p in found):
            break
    return list(names)


def shipped_classes() -> dict[str, list[str]]:
    """Class paths in the shipped YAML files, by their key: ``objective``, ``pair``, ..."""
    found: dict[str, dict[str, None]] = {}
    for name in installation.shipped_configs():
        content = yaml.safe_load((installation.root() / name).read_text(encoding="utf-8"))
        folder = Path(name).parent.name
        _collect(content, KEY_OF_FOLDER.get(folder, folder), found)
    return {key: list(paths) for key, paths in found.items()}


def _collect(value: object, key: str, found: dict[str, dict[str, None]]) -> None:
    if isinstance(value, list):
        for item in value:
            _collect(item, key, found)
    elif isinstance(value, dict):
        path = value.get("class_path")
        if isinstance(path, str):
            found.setdefault(key, {})[path] = None
        for name, item in value.items():
            _collect(item, key if name == "init_args" else str(name).rstrip("+"), found)


def classes_of(module: str) -> list[str]:
    """Class paths of the public classes and imports of a module, read from its source; [] if there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return []
    names: list[str] = []
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == module.partition(".")[0]:
            names += [alias.name for alias in node.names if alias.name[:1].isupper()]
    return [f"{module}.{name}" for name in names if not name.startswith("_")]


def nearest_classes(path: str, key: str) -> list[str]:
    """Class paths similar to ``path``, from the key's packages, the module in ``path`` and shipped YAML files.

    Args:
        path: A class path, or only the name of a class.
        key: Key of the setting: ``optimizer``, ``callbacks``, ...
    """
    module, _, name = path.rpartition(".")
    package = module.rpartition(".")[0]
    shipped = shipped_classes()
    own = [*shipped.get(key, []), *(path for home in HOMES.get(key, ()) for path in classes_of(home))]
    others = [path for paths in shipped.values() for path in paths] if module else []
    candidates = dict.fromkeys([*own, *classes_of(module), *classes_of(package), *others])
    by_name: dict[str, str] = {}
    for candidate in candidates:
        by_name.setdefault(candidate.rpartition(".")[2], candidate)
    if name in by_name:
        return [by_name[name]]
    return [by_name[found] for found in nearest(name, by_name)] or nearest(path, candidates)


def nearest_files(path: str) -> list[str]:
    """Files similar to ``path``: in its folder and, for a YAML file, among the shipped files."""
    wanted = Path(path)
    names: list[str] = []
    if wanted.parent.is_dir():
        names += [str(wanted.parent / entry.name) for entry in sorted(wanted.parent.iterdir())]
    own = nearest(path, names)
    if wanted.suffix not in (".yaml", ".yml"):
        return own
    shipped = [name for name in installation.shipped_configs() if Path(name).parent.name == wanted.parent.name]
    for known in (shipped, installation.shipped_configs()):
        by_stem = {Path(name).stem: name for name in reversed(known)}
        own += [by_stem[stem] for stem in nearest(wanted.stem, by_stem)]
        if own:
            break
    return own[:SHOWN]


def configs_of(key: str) -> list[str]:
    """The shipped files for a key: ``configs/objective/dpo.yaml``, ...; [] if there are none."""
    if key in KEY_OF_FOLDER:
        return []
    folder = next((folder for folder, name in KEY_OF_FOLDER.items() if name == key), key)
    return [name for name in installation.shipped_configs() if name.startswith(f"configs/{folder}/")]


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
