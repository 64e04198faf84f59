"""What needs an optional package says which extra installs it, and everything else does without."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from models.adaptation import LoRA
from models.extras import require
from models.scorers.tfidf import TfidfHarm
from models.sources import HuggingFace

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def use_lora() -> None:
    LoRA().apply(None)  # type: ignore[arg-type]


def use_gguf() -> None:
    HuggingFace("folder", gguf_file="model.gguf").load_model()


def use_tfidf(folder: str = "unused") -> None:
    TfidfHarm(folder=folder, units="probability").fit(["a", "b"], ["c", "d"], [True, False], [1, 2])


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [("peft", "lora", use_lora), ("gguf", "gguf", use_gguf), ("sklearn", "eval", use_tfidf)],
)
def test_a_missing_package_is_answered_by_the_extra_that_installs_it(
    package: str, extra: str, use: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        use()  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    assert f"pip install 'lit-safe[{extra}]'" in message
    listed = {Requirement(text).name for text in EXTRAS[extra]}
    assert {"sklearn": "scikit-learn"}.get(package, package) in listed


def test_a_package_that_lacks_something_of_its_own_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("import nowhere_to_be_found\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        require("broken_package", extra="lora", reason="a test")


def test_every_module_imports_without_any_extra() -> None:
    code = (
        "import sys, importlib, pathlib\n"
        "sys.modules |= dict.fromkeys(['peft', 'gguf', 'sklearn'])\n"
        "for top in ('lit_safe', 'models', 'data', 'ops'):\n"
        "    for path in sorted(pathlib.Path(top).rglob('*.py')):\n"
        "        name = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')\n"
        "        if not name.endswith('__main__'): importlib.import_module(name)\n"
        "print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.stdout.strip() == "imported", done.stderr[-2000:]
