"""The lock fits pyproject, and each of its Pythons and platforms finds wheels on the public index."""

import json
import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PUBLIC = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

# what pip takes for a platform: newest glibc first; Debian 12 and Ubuntu 22.04 have 2.35 or newer
GLIBC = (34, 31, 28, 27, 24, 17)
PLATFORMS = {
    "linux-x86_64": [*(f"manylinux_2_{n}_x86_64" for n in GLIBC), "manylinux2014_x86_64", "linux_x86_64"],
    "linux-aarch64": [*(f"manylinux_2_{n}_aarch64" for n in GLIBC), "manylinux2014_aarch64"],
    "darwin-arm64": [*(f"macosx_{n}_0_{m}" for n in (14, 13, 12, 11) for m in ("arm64", "universal2"))],
}
PYTHONS = ("3.11", "3.12", "3.13")


class Target(NamedTuple):
    """A Python and a platform, as pip and as markers name it."""

    python: str
    place: str

    @property
    def markers(self) -> dict[str, str]:
        system, machine = self.place.split("-")
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.9",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.9",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": system,
            "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
            "platform_machine": machine,
            "platform_release": "",
            "platform_version": "",
            "extra": "",
        }


def meant(marker: Marker | None, target: Target) -> bool:
    return marker is None or marker.evaluate(target.markers)


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """Requirements of a file of ours with their hash options."""
    joined = (FOLDER / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.partition("--hash") for line in joined.splitlines() if not line.startswith("#")]
    return [(Requirement(head.strip()), (mark + tail).split()) for head, mark, tail in lines]


def download_of(torch: str, target: Target, folder: Path) -> list[dict[str, object]]:
    """What pip would install for ``target``: our locked lines by hash, then torch by itself. Metadata alone is fetched.

    pip would judge markers by the Python that runs it, so lines for other targets are left out before it sees them.
    """
    lines = [f"{r.name}{r.specifier} {' '.join(h)}" for r, h in locked("lock.txt") if meant(r.marker, target)]
    wanted = folder / "wanted.txt"
    wanted.write_text("\n".join(lines), encoding="utf-8")
    common = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    common += ["--only-binary", ":all:", "--target", str(folder / "never"), "--python-version", target.python]
    common += ["--implementation", "cp", *(word for name in PLATFORMS[target.place] for word in ("--platform", name))]
    found = []
    for what in (["--require-hashes", "-r", str(wanted)], [torch]):
        report = folder / "report.json"
        done = subprocess.run(
            [*common, "--report", str(report), *what],
            env=os.environ | PUBLIC,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode and "Connection" in done.stderr + done.stdout:
            pytest.skip("the package index cannot be reached")
        assert done.returncode == 0, f"{target}: {done.stderr[-2000:]}"
        found += [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return found


def unmet(found: list[dict[str, object]], target: Target) -> list[str]:
    """Requirements among these packages that the set does not meet; CUDA packages are torch's own."""
    versions = {canonicalize_name(str(item["name"])): str(item["version"]) for item in found}
    missing = []
    for item in found:
        for text in item.get("requires_dist", []):  # type: ignore[attr-defined]
            need = Requirement(text)
            name = canonicalize_name(need.name)
            if not meant(need.marker, target) or name.startswith(("nvidia-", "cuda-")):
                continue
            if name not in versions or not need.specifier.contains(versions[name], prereleases=True):
                missing.append(f"{item['name']} asks for {need.name}{need.specifier}, found {versions.get(name)}")
    return missing


def test_a_marker_is_judged_by_the_target_and_not_by_the_running_python() -> None:
    mac = Target("3.13", "darwin-arm64")
    assert meant(Marker("python_full_version >= '3.12' and sys_platform == 'darwin'"), mac)
    assert not meant(Marker("platform_system == 'Linux'"), mac)


def test_an_unmet_pin_is_found() -> None:
    found = [
        {"name": "torch", "version": "2.13.0", "requires_dist": ["triton==3.7.1; platform_system == 'Linux'"]},
        {"name": "triton", "version": "3.9.0"},
    ]
    assert unmet(found, Target("3.11", "linux-x86_64")) == ["torch asks for triton==3.7.1, found 3.9.0"]
    assert unmet(found, Target("3.11", "darwin-arm64")) == []


def test_the_lock_holds_what_pyproject_asks_for_within_its_ranges() -> None:
    versions: dict[str, list[str]] = {}
    for requirement, _ in [*locked("lock.txt"), *locked("triton.txt")]:
        versions.setdefault(canonicalize_name(requirement.name), []).append(str(requirement.specifier)[2:])
    (torch,) = [Requirement(line) for line in (FOLDER / "torch.txt").read_text(encoding="utf-8").split()]
    versions["torch"] = [str(torch.specifier)[2:]]
    extras = PROJECT["optional-dependencies"]
    apart = ("qlora", "deepspeed")  # for CUDA machines; no part of `all` or dev
    groups = [group for name, group in extras.items() if name not in apart]
    for text in [*PROJECT["dependencies"], *(text for group in groups for text in group)]:
        asked = Requirement(text)
        name = canonicalize_name(asked.name)
        if name == "lit-safe":
            assert asked.extras <= extras.keys()
            continue
        assert name in versions, f"{text} is not in the lock: make lock"
        for version in versions[name]:
            assert asked.specifier.contains(version), f"the lock has {name} {version}, pyproject asks for {text}"


def test_every_locked_line_is_one_version_with_hashes() -> None:
    for name in ("lock.txt", "triton.txt"):
        for requirement, hashes in locked(name):
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            assert hashes, f"{requirement.name} has no hash"
            assert all(option.startswith("--hash=sha256:") for option in hashes)


def test_torch_and_triton_are_left_to_torch() -> None:
    names = {canonicalize_name(requirement.name) for requirement, _ in locked("lock.txt")}
    assert not {name for name in names if name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torch_and_the_lock_resolve_on_the_public_index_for_every_python_and_platform(tmp_path: Path) -> None:
    torch = (FOLDER / "torch.txt").read_text(encoding="utf-8").strip()
    targets = [Target(python, place) for python in PYTHONS for place in PLATFORMS]

    def check(target: Target) -> list[str]:
        folder = tmp_path / "-".join(target)
        folder.mkdir()
        found = download_of(torch, target, folder)
        pinned = [r for r, _ in locked("triton.txt") if meant(r.marker, target)]
        found += [{"name": r.name, "version": str(r.specifier)[2:]} for r in pinned]
        # our own ranges too, as the package itself would ask
        found.append({"name": "lit-safe", "version": "0", "requires_dist": PROJECT["dependencies"]})
        return [f"{target}: {line}" for line in unmet(found, target)]

    with ThreadPoolExecutor(2) as pool:
        problems = [line for lines in pool.map(check, targets) for line in lines]
    assert not problems
