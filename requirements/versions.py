"""Run tests with the lowest or the newest versions that pyproject allows, in a throw-away environment.

``python requirements/versions.py lowest|newest [--slice] [--torch SPEC] [--python PYTHON]``. torch is installed first,
by pip, and stays as it is: a floor of torch is asked for as ``--torch torch==2.11.0``. The exit status is pytest's.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = ROOT / "requirements" / "torch.txt"
RESOLUTION = {"lowest": "lowest-direct", "newest": "highest"}
RESUME = "tests/lit_safe/runs/test_resume_command.py"
# About two minutes: the oracle, the interpreter and the memory tests say little of versions. The resumed fit is slow
LEFT_OUT = ("tests/data/test_oracle_*.py", "tests/ops/test_fused_*.py", "tests/ops/test_logp_memory.py")
SLICE = (
    ["tests/models", "tests/data", "tests/ops", *(f"--ignore-glob={pattern}" for pattern in LEFT_OUT)],
    [RESUME, "-m", "slow and not peers and not gpu"],
)
TOLD = ("torch", "triton", "lightning", "transformers", "jsonargparse", "numpy", "scipy", "datasets", "peft")
VERSIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({d.metadata["Name"].lower(): d.version for d in distributions()}))
"""


def say(step: str) -> None:
    """One line for a step."""
    print(f"versions: {step}", flush=True)


def default_torch() -> str:
    """The one requirement in requirements/torch.txt."""
    lines = [line.partition("#")[0].strip() for line in TORCH.read_text(encoding="utf-8").splitlines()]
    return next(line for line in lines if line)


def locked_triton() -> str:
    """The pin in requirements/triton.txt, without hashes and marker."""
    (pin,) = re.findall(r"^triton==[^\s;]+", (ROOT / "requirements" / "triton.txt").read_text(encoding="utf-8"), re.M)
    return str(pin)


def installed(python: str) -> dict[str, str]:
    """Versions by name in the environment of ``python``."""
    done = subprocess.run([python, "-I", "-c", VERSIONS], stdout=subprocess.PIPE, check=True, encoding="utf-8")
    return dict(json.loads(done.stdout))


def must(command: list[str]) -> None:
    """Run a step of the building; its failure ends the run with pytest's status for a usage error."""
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        say("failed: " + " ".join(command))
        sys.exit(4)


def build(folder: str, which: str, torch: str, python: str) -> str:
    """Make the environment in ``folder`` and return its Python."""
    inside = str(Path(folder) / "venv" / "bin" / "python")
    say(f"makes a virtual environment of {python}")
    must([python, "-m", "venv", str(Path(folder) / "venv")])
    say(f"installs {torch}")
    must([inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", torch])
    found = installed(inside)
    kept = Path(folder) / "kept.txt"
    pins = [f"{name}=={found[name]}" for name in ("torch", "triton") if name in found]
    # A CUDA build of torch pins its triton. A CPU build brings none: the newest triton may not fit this torch, so the
    # one that its CUDA build asks for is taken. The lowest triton is pyproject's floor.
    if "triton" not in found and which == "newest" and torch == default_torch():
        pins.append(locked_triton())
    kept.write_text("\n".join(pins), encoding="utf-8")
    say(f"installs the {which} versions of the project and its dev extra beside {' and '.join(pins)}")
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", inside]
    must([*uv, "--resolution", RESOLUTION[which], "--constraint", str(kept), "--editable", f"{ROOT}[dev]"])
    found = installed(inside)
    shown = [f"{name} {found[name]}" for name in TOLD if name in found]
    say(f"has Python {_version(inside)}, {', '.join(shown)}")
    return inside


def _version(python: str) -> str:
    told = subprocess.run([python, "--version"], stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    return re.sub(r"^Python ", "", told.strip())


def run(python: str, runs: tuple[list[str], ...]) -> int:
    """Run pytest once for each list of words; the first status that is not 0, or 0."""
    env = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    status = 0
    for words in runs:
        say(f"runs pytest {' '.join(words) or 'on the fast tests'}")
        began = time.monotonic()
        done = subprocess.run(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words], cwd=ROOT, env=env, check=False
        )
        say(f"pytest ended with {done.returncode} after {time.monotonic() - began:.0f} s")
        status = status or done.returncode
    return status


def main() -> int:
    """Build, run, remove."""
    parser = argparse.ArgumentParser(description="Run tests with the lowest or the newest allowed versions.")
    parser.add_argument("which", choices=RESOLUTION)
    parser.add_argument("--slice", action="store_true", help="models, data, ops and one resumed fit alone")
    parser.add_argument("--torch", default=default_torch(), help="what pip installs first (requirements/torch.txt)")
    parser.add_argument("--python", default=sys.executable, help="the Python to build with")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=f"lit-safe-{chosen.which}-") as folder:
        return run(build(folder, chosen.which, chosen.torch, chosen.python), SLICE if chosen.slice else ([],))


if __name__ == "__main__":
    sys.exit(main())
