"""Check that a release can be made: ``make release-check`` (``python requirements/release.py``).

Builds the sdist and, from it, the wheel, outside the checkout, so that nothing left over from earlier builds gets in.
Checks the metadata, the contents and that all places name one version. Then installs the wheel into a fresh
environment with the locked packages and uses it from an empty folder (tests/installed/tiny_run.py).
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("models", "data", "ops", "configs")
SDIST_TESTS = ("tests/test_architecture.py", "tests/test_configs.py", "tests/lit_safe/test_installation.py")


def main() -> None:
    """Run every check; stop at the first that fails, with one line."""
    version = one_version()
    print(f"ok: version {version} in pyproject.toml, CITATION.cff and CHANGELOG.md", flush=True)
    with tempfile.TemporaryDirectory(prefix="lit-safe release ") as place:
        folder = Path(place)
        _run("build the sdist and the wheel", "-m", "build", "--no-isolation", "--outdir", place, str(ROOT))
        (wheel,) = folder.glob("*.whl")
        (sdist,) = folder.glob("*.tar.gz")
        _run("check the metadata", "-m", "twine", "check", "--strict", str(wheel), str(sdist))
        check_wheel(wheel)
        check_sdist(sdist)
        print("ok: the wheel holds the package alone, the sdist holds the tests", flush=True)
        python = install(wheel, folder / "environment")
        test_sdist(sdist, folder, python)
        _run("use the wheel from an empty folder", str(ROOT / "tests" / "installed" / "tiny_run.py"), str(python))


def one_version() -> str:
    """The version that pyproject, the citation and the changelog agree on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    found = {"CITATION.cff": citation and citation[1], "CHANGELOG.md": changelog and changelog[1]}
    for name, other in found.items():
        if other != project:
            sys.exit(f"{name} names version {other}, pyproject.toml {project}: make them equal")
    return str(project)


def check_wheel(wheel: Path) -> None:
    """Nothing but lit_safe at the top, and every tracked file of its parts inside."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    tops = {name.partition("/")[0] for name in names}
    stray = [top for top in tops if top != "lit_safe" and not top.endswith(".dist-info")]
    if stray:
        sys.exit(f"the wheel puts {', '.join(stray)} at the top of site-packages")
    tracked = _tracked("lit_safe", *PARTS)
    wanted = {name if name.startswith("lit_safe/") else f"lit_safe/_parts/{name}" for name in tracked}
    inside = {name for name in names if name.startswith("lit_safe/")}
    if wanted != inside:
        sys.exit(f"the wheel lacks {sorted(wanted - inside)[:5]}, and {sorted(inside - wanted)[:5]} are not tracked")


def check_sdist(sdist: Path) -> None:
    """Every tracked file, the tests included."""
    with tarfile.open(sdist) as archive:
        inside = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    missing = _tracked() - inside
    if missing:
        sys.exit(f"the sdist lacks {sorted(missing)[:5]}")


def install(wheel: Path, environment: Path) -> Path:
    """A fresh environment with torch, the locked packages and the wheel; returns its Python."""
    _run("make a fresh environment", "-m", "venv", str(environment))
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    requirements = ROOT / "requirements"
    _run("install torch", *pip, "-r", str(requirements / "torch.txt"), python=python)
    uv = ["-m", "uv", "pip", "install", "--quiet", "--python", str(python), "--no-deps", "--require-hashes"]
    if subprocess.run([python, "-c", "import triton"], capture_output=True, check=False).returncode:
        _run("install triton", *uv, "-r", str(requirements / "triton.txt"))
    _run("install the locked packages", *uv, "-r", str(requirements / "lock.txt"))
    _run("install the wheel", *pip, "--no-deps", str(wheel), python=python)
    _run("check the requirements", "-m", "pip", "check", python=python)
    return python


def test_sdist(sdist: Path, folder: Path, python: Path) -> None:
    """The sdist runs its own tests, away from the checkout: here those of structure, configs and installation."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    _run("run tests of the unpacked sdist", "-m", "pytest", "-q", *SDIST_TESTS, python=python, cwd=unpacked)


def _tracked(*folders: str) -> set[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *folders]
    return {
        name
        for name in subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.split("\0")
        if name
    }


def _run(what: str, *words: str, python: Path | None = None, cwd: Path | None = None) -> None:
    command = [python or sys.executable, *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}\n{done.stderr}\nrelease-check: could not {what}")
    print(f"ok: {what}", flush=True)


if __name__ == "__main__":
    main()
