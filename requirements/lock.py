"""Write lock.txt and triton.txt from pyproject's ranges: ``make lock``.

The lock holds for the Pythons and platforms of pyproject's ``[tool.uv] environments``. torch, triton and the CUDA
packages are left out: torch's own requirements choose them. triton.txt pins the triton that the CUDA build of torch
asks for. It is for builds of torch that bring none. Versions of today's lock are kept where they fit; delete lock.txt
first to take the newest of everything.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
OLDEST = "3.11"
PUBLIC = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}  # neither this machine's wheels nor its settings


def main() -> None:
    """Resolve and write both files."""
    torch = (HERE / "torch.txt").read_text(encoding="utf-8").strip()
    asked = torch_requirements(torch)
    (triton,) = [r for r in asked if canonicalize_name(r.name) == "triton"]
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "pyproject.toml"
        ranges = (HERE.parent / "pyproject.toml").read_text(encoding="utf-8")
        project.write_text(ranges + _metadata(Requirement(torch), asked), encoding="utf-8")
        common = ["--universal", "--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
        common += ["--python-version", OLDEST, "--project", folder]
        out = ["--constraint", str(HERE / "torch.txt"), "--output-file", str(HERE / "lock.txt")]
        for name in ("torch", "triton", "lit-safe"):
            out += ["--no-emit-package", name]
        _forget_hashes(HERE / "lock.txt")
        _uv([*common, *out, "--extra", "dev", str(project)])
        wanted = Path(folder) / "triton.in"
        wanted.write_text(f"triton{triton.specifier} ; sys_platform == 'linux'\n", encoding="utf-8")
        _uv([*common, "--no-deps", "--output-file", str(HERE / "triton.txt"), str(wanted)])
    note = "# Written by `make lock`; not edited by hand."
    _head("lock.txt", f"{note} Of pyproject's ranges with the extras of `all` and `dev`, beside {torch}.\n")
    _head("triton.txt", f"{note} What the CUDA build of {torch} asks for; for builds that bring no triton.\n")


def torch_requirements(torch: str) -> list[Requirement]:
    """What the public Linux build of ``torch`` asks for, CUDA packages apart. Downloads metadata alone."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", "3.12", "--platform", "manylinux_2_28_x86_64"]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--target", folder, "--report", "-", torch]
        done = subprocess.run(command, env=os.environ | PUBLIC, stdout=subprocess.PIPE, check=True)
    (found,) = json.loads(done.stdout)["install"]
    asked = [Requirement(text) for text in found["metadata"]["requires_dist"]]
    plain = [r for r in asked if r.marker is None or "extra" not in str(r.marker)]
    return [r for r in plain if not canonicalize_name(r.name).startswith(("nvidia-", "cuda-"))]


def _metadata(torch: Requirement, asked: list[Requirement]) -> str:
    (version,) = [s.version for s in torch.specifier]
    return (
        f'\n[[tool.uv.dependency-metadata]]\nname = "torch"\nversion = "{version}"\n'
        f"requires-dist = {json.dumps([str(r) for r in asked])}\n"
    )


def _forget_hashes(path: Path) -> None:
    """Uv keeps the hashes of a version that stays, even where they lack a platform's wheels."""
    if path.is_file():
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        path.write_text(
            "".join(line.partition(" --hash")[0].strip() + "\n" for line in text.splitlines()), encoding="utf-8"
        )


def _uv(words: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "uv", "pip", "compile", *words], check=True, stdout=subprocess.DEVNULL)


def _head(name: str, line: str) -> None:
    path = HERE / name
    path.write_text(line + path.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main()
