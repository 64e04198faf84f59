"""``make setup`` builds what was asked for, keeps what is good, and explains a failure in one line."""

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import Marker

CHECKOUT = Path(__file__).parents[1]
SCRIPTS = CHECKOUT / "requirements"
TOML = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = TOML["project"]
BACKEND = """
import zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(folder + "/tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in {"METADATA": "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n", "RECORD": "",
                           "WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"}.items():
            wheel.writestr("tiny-1.0.dist-info/" + name, text)
    return "tiny-1.0-py3-none-any.whl"
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tiny"
version = "1.0"
dependencies = ["torch>={floor}"]
[tool.ruff]
line-length = 99
"""
NO_HOST = "'NewConnectionError('<HTTPSConnection object at 0x7f>: Failed to establish a new connection: [Errno -2]')'"
FAILURES = {  # what pip 23.2 and 25 print, shortened
    "offline": (
        f"WARNING: Retrying (Retry(total=0)) after connection broken by {NO_HOST}: /simple/torch/\n"
        "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)\n"
        "ERROR: No matching distribution found for torch==2.13.0\n"
        "2026-11-30T06:24:30,233 Could not fetch URL https://pypi.invalid/simple/torch/: connection error: "
        "HTTPSConnectionPool(host='pypi.invalid', port=443): Max retries exceeded with url: /simple/torch/",
        ("pypi.invalid cannot be reached", "curl -I https://pypi.invalid"),
    ),
    "a download that breaks off": (
        "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='files.index.example', port=443)"
        ": Read timed out.",
        ("files.index.example cannot be reached",),
    ),
    "an authority that is not trusted": (
        "Could not fetch URL https://index.example/simple/torch/: There was a problem confirming the ssl certificate: "
        "HTTPSConnectionPool(host='index.example', port=443): Max retries exceeded (SSLError(SSLCertVerification"
        "Error(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed')))\n"
        "ERROR: No matching distribution found for torch==2.13.0",
        ("certificate of index.example is not trusted", "PIP_CERT="),
    ),
    "no such torch": (
        "ERROR: Could not find a version that satisfies the requirement torch==9.9 (from versions: 2.11.0, 2.13.0)\n"
        "ERROR: No matching distribution found for torch==9.9",
        ("no build of torch==9.9 fits Python", "offers 2.11.0, 2.13.0", "TORCH_INDEX="),
    ),
    "no torch for this platform": (
        "ERROR: Could not find a version that satisfies the requirement torch==9.9 (from versions: none)\n"
        "ERROR: No matching distribution found for torch==9.9",
        ("no build of torch==9.9 fits Python", "TORCH_INDEX="),
    ),
    "a wheel for another system": (
        "ERROR: torch-2.13.0-cp39-cp39-win_amd64.whl is not a supported wheel on this platform.",
        ("no build of torch-2.13.0-cp39-cp39-win_amd64.whl fits",),
    ),
    "a lock without a wheel for this platform": (
        "ERROR: Could not find a version that satisfies the requirement tokenizers==0.23.1 (from versions: none)\n"
        "ERROR: No matching distribution found for tokenizers==0.23.1",
        ("no wheel of tokenizers==0.23.1 fits", "PYTHON=python3.12"),
    ),
    "another file than the lock's": (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package "
        "versions, please update the hashes. Otherwise, someone may have tampered with them.\n"
        "    numpy==2.4.6 from https://mirror.example/numpy-2.4.6.whl (from -r requirements/lock.txt (line 3)):\n"
        "        Expected sha256 00\n             Got        7c",
        ("numpy==2.4.6 from https://mirror.example/numpy-2.4.6.whl", "another hash", "git checkout requirements/lock"),
    ),
    "a lock edited by hand": (
        "ERROR: In --require-hashes mode, all requirements must have their versions pinned with ==. These do not:",
        ("without ==version or hash", "git checkout requirements/lock.txt"),
    ),
    "a full disk": (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        ("the disk is full", "df -h"),
    ),
    "a read-only folder": (
        "ERROR: Could not install packages due to an OSError: [Errno 30] Read-only file system: '/x/.venv/lib'",
        ("cannot be written", "ls -ld"),
    ),
    "a failed build while an unneeded index is down": (
        f"WARNING: Retrying (Retry(total=0)) after connection broken by {NO_HOST}: /simple/\n"
        "error: subprocess-exited-with-error\nERROR: Failed building editable for lit-safe",
        ("Failed building editable for lit-safe", "Next: "),
    ),
    "anything else": (
        "ERROR: Invalid requirement: 'torch=2.13.0'",
        ("Invalid requirement: 'torch=2.13.0'", "Next: "),
    ),
    "a death without words": ("", ("Next: ",)),
}


@pytest.fixture
def scripts(monkeypatch):
    """The two modules of requirements/, imported as the script imports them."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for name in ("environment", "explain"):
        sys.modules.pop(name, None)
    yield argparse.Namespace(**{name: importlib.import_module(name) for name in ("environment", "explain")})
    for name in ("environment", "explain"):
        sys.modules.pop(name, None)


def pinned(folder, name):
    """Write an empty wheel and return the line of a lock that names it."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    files = {
        f"{name}.py": "",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as file:
        for path, text in files.items():
            file.writestr(path, text)
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.fixture
def checkout(tmp_path):
    """A small checkout, in a folder with spaces, whose lock needs no network."""
    root = tmp_path / "a checkout with spaces"
    shutil.copytree(SCRIPTS, root / "requirements", ignore=shutil.ignore_patterns("*.txt", "__pycache__"))
    shutil.copy(CHECKOUT / "Makefile", root)
    (root / "backend.py").write_text(BACKEND, encoding="utf-8")
    (root / "pyproject.toml").write_text(PYPROJECT.format(floor="2.11"), encoding="utf-8")
    (root / "wheels").mkdir()
    leaf, stem = (pinned(root / "wheels", name) for name in ("leaf", "stem"))
    (root / "requirements" / "lock.txt").write_text(leaf, encoding="utf-8")
    (root / "requirements" / "torch.txt").write_text("# the default\ntorch==2.13.0\n", encoding="utf-8")
    (root / "requirements" / "triton.txt").write_text(stem, encoding="utf-8")
    return root


@pytest.fixture
def world(scripts, checkout, monkeypatch):
    """The script inside the small checkout, with a build that writes a file and the marker, and counts itself."""
    module = scripts.environment
    monkeypatch.setattr(module, "ROOT", str(checkout))
    built = []

    def build(self, log):
        venv = Path(self.path)
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
        built.append((self.torch, self.index))
        (venv / "number").write_text(str(len(built)), encoding="utf-8")
        record = {
            "path": self.path, "digest": module.digest(), "torch": self.torch, "index": self.index,
            "prefix": sys.prefix,
            "python": list(sys.version_info[:2]), "caller": sys.executable, "torch_file": __file__,
        }  # fmt: skip
        Path(self.marker).write_text(json.dumps(record), encoding="utf-8")

    monkeypatch.setattr(module.Environment, "build", build)
    venv = checkout / ".venv"

    def set_up(torch="", index="", chosen=False):
        return module.set_up(argparse.Namespace(venv=str(venv), torch=torch, torch_index=index, python_chosen=chosen))

    return argparse.Namespace(module=module, venv=venv, built=built, set_up=set_up, root=checkout)


def test_the_supported_pythons_are_those_of_pyproject(scripts):
    """The script cannot read TOML under an old Python, so it repeats the bounds."""
    listed = [re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", line) for line in PROJECT["classifiers"]]
    minors = [int(found.group(1)) for found in listed if found]
    bounds = (scripts.environment.OLDEST, scripts.environment.NEWEST)
    assert bounds == ((3, min(minors)), (3, max(minors)))
    assert PROJECT["requires-python"].split(",")[0] == f">=3.{min(minors)}"


@pytest.mark.parametrize("version", ["3.6", "3.9", "3.10"])
def test_an_old_python_is_refused_in_one_line_and_leaves_nothing(version, checkout):
    found = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    python = str(found[0]) if found else shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"no Python {version} here")
    done = subprocess.run([python, "requirements/environment.py"], cwd=checkout, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"is Python {version}; Python 3.11 to 3.13 is needed" in done.stderr
    assert "make setup PYTHON=python3.12" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(("version", "refused"), [((3, 10), True), ((3, 11), False), ((3, 13), False), ((3, 14), True)])
def test_the_bounds_include_both_ends(scripts, version, refused):
    if refused:
        with pytest.raises(scripts.environment.Refusal, match="is needed"):
            scripts.environment.check_python((*version, 1), "python")
    else:
        scripts.environment.check_python((*version, 1), "python")


def test_a_platform_outside_the_lock_is_refused(world, monkeypatch):
    monkeypatch.setattr(world.module.platform, "machine", lambda: "riscv64")
    with pytest.raises(world.module.Refusal, match=r"this is \w+ riscv64\. Next: pip install -e"):
        world.set_up()


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_of_pip_becomes_one_line_with_the_next_command(scripts, failure):
    output, parts = FAILURES[failure]
    line = scripts.explain.explain("installing", output)
    assert "\n" not in line
    assert "Next: " in line
    for part in parts:
        assert part in line


def test_an_unreachable_torch_index_is_named_where_pip_names_no_host(scripts):
    line = scripts.explain.explain("installing torch", NO_HOST, "https://user@download.pytorch.org/whl/cu128")
    assert line.startswith("download.pytorch.org cannot be reached")


def test_a_good_environment_is_kept_and_remembers_the_choice(world):
    world.set_up("torch==2.13.0", "https://index.example/whl")
    world.set_up()
    world.set_up("torch==2.13.0", "https://index.example/whl")
    assert world.built == [("torch==2.13.0", "https://index.example/whl")]


@pytest.mark.parametrize("name", ["lock.txt", "triton.txt", "torch.txt"])
def test_a_change_of_requirements_rebuilds(world, name):
    world.set_up()
    with open(world.root / "requirements" / name, "a", encoding="utf-8") as file:
        file.write("# more\n")
    world.set_up()
    assert len(world.built) == 2


def test_a_requirement_file_that_is_missing_is_named(world):
    (world.root / "requirements" / "triton.txt").unlink()
    with pytest.raises(world.module.Refusal, match=r"requirements/triton\.txt is missing\. Next: git checkout"):
        world.set_up()


def test_a_change_of_the_projects_tables_rebuilds_and_one_of_a_linters_table_does_not(world):
    project = world.root / "pyproject.toml"
    world.set_up()
    project.write_text(
        project.read_text(encoding="utf-8").replace("line-length = 99", "line-length = 98"), encoding="utf-8"
    )
    world.set_up()
    assert len(world.built) == 1
    project.write_text(project.read_text(encoding="utf-8").replace("torch>=2.11", "torch>=2.12"), encoding="utf-8")
    world.set_up()
    assert len(world.built) == 2


def damage_torch(world, record):
    return record | {"torch": "torch==2.12.0"}, {"torch": "torch==2.13.0"}


def damage_index(world, record):
    return record, {"torch": "", "index": "https://index.example"}


def damage_python(world, record):
    return record | {"python": [3, 1]}, {"chosen": True}


def damage_place(world, record):
    return record | {"path": "/elsewhere/.venv"}, {}


def damage_interpreter(world, record):
    (world.venv / "bin" / "python").unlink()
    (world.venv / "bin" / "python").symlink_to("/nowhere/python")
    return record, {}


def damage_kept_torch(world, record):
    return record | {"torch": "keep", "torch_file": "/nowhere/torch/__init__.py"}, {}


def damage_kept_environment(world, record):
    return record | {"torch": "keep", "prefix": "/opt/conda"}, {"torch": "keep"}


def damage_marker(world, record):
    return None, {}


@pytest.mark.parametrize("damage", [value for name, value in sorted(globals().items()) if name.startswith("damage_")])
def test_a_stale_or_half_made_environment_is_rebuilt(world, damage):
    world.set_up()
    marker = world.venv / ".ready"
    record, asked = damage(world, json.loads(marker.read_text(encoding="utf-8")))
    marker.write_text(json.dumps(record), encoding="utf-8") if record else marker.unlink()
    world.set_up(**asked)
    assert len(world.built) == 2
    assert (world.venv / "number").read_text(encoding="utf-8") == "2"
    assert not world.venv.with_name(".venv.old").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failed_rebuild_puts_the_old_environment_back(world, monkeypatch, error):
    world.set_up()

    def fail(self, log):
        Path(self.path).mkdir()
        raise error

    monkeypatch.setattr(world.module.Environment, "build", fail)
    expected = world.module.Refusal if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        world.set_up("torch==2.12.0")
    assert (world.venv / "number").read_text(encoding="utf-8") == "1"
    assert world.set_up() == ".venv is ready"


def test_a_failed_first_build_leaves_no_environment(world, monkeypatch):
    def fail(self, log):
        Path(self.path).mkdir()
        Path(log).write_text("what pip said", encoding="utf-8")
        raise world.module.Refusal("no. Next: make setup")

    monkeypatch.setattr(world.module.Environment, "build", fail)
    with pytest.raises(world.module.Refusal, match="pip's output: ") as refusal:
        world.set_up()
    log = Path(str(refusal.value).split("pip's output: ")[1].rstrip(")"))
    assert log.read_text(encoding="utf-8") == "what pip said"
    log.unlink()
    assert not world.venv.exists()


def test_a_build_that_was_killed_gives_the_old_environment_back(world):
    world.set_up()
    world.venv.rename(world.venv.with_name(".venv.old"))
    world.venv.mkdir()
    world.set_up()
    assert len(world.built) == 1
    assert (world.venv / "number").read_text(encoding="utf-8") == "1"


def test_a_checkout_that_cannot_be_written_is_named(world, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(world.module.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(world.module.Refusal, match=r"a checkout with spaces cannot be written\. Next: cp -r"):
        world.set_up()


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_its_venv_package_is_named(world, monkeypatch, module):
    known = importlib.util.find_spec
    monkeypatch.setattr(world.module.importlib.util, "find_spec", lambda name: None if name == module else known(name))
    with pytest.raises(world.module.Refusal, match=rf"has no {module}\. Next: sudo apt install python3\.\d+-venv"):
        world.set_up()


def test_two_set_ups_at_once_are_refused(scripts):
    first = scripts.environment.alone()
    with pytest.raises(scripts.environment.Refusal, match="another make setup"):
        scripts.environment.alone()
    first.close()


@pytest.mark.parametrize(
    ("version", "wanted", "met"),
    [
        ("2.11.0", ">=2.11", True),
        ("2.11.0a0+5d2b.nv26.1", ">=2.11", True),
        ("2.13.0+rocm7.1", ">=2.11", True),
        ("2.10.2+cu128", ">=2.11", False),
        ("2.9.1", ">=2.11", False),
        ("3.0.0", ">=2.11,<3", False),
        ("2.12.0", ">=2.11,!=2.12", False),
        ("2.12.1", ">=2.11,!=2.12", True),
    ],
)
def test_the_kept_torch_is_compared_with_pyprojects_range(scripts, version, wanted, met):
    assert scripts.environment.in_range(version, wanted) is met


def test_the_scripts_platforms_and_pythons_are_those_that_the_lock_is_resolved_for(scripts):
    def allows(python, place):
        system, machine = place.split()
        here = {"python_full_version": f"{python}.0", "sys_platform": system, "platform_machine": machine}
        return any(Marker(text).evaluate(here) for text in TOML["tool"]["uv"]["environments"])

    systems, machines = ("linux", "darwin", "win32"), ("x86_64", "aarch64", "arm64", "AMD64", "ppc64le")
    places = {f"{system} {machine}" for system in systems for machine in machines}
    assert {place for place in places if allows("3.12", place)} == set(scripts.environment.PLATFORMS)
    newest = scripts.environment.NEWEST
    assert allows(scripts.environment.dotted(newest), scripts.environment.PLATFORMS[0])
    assert not allows(f"3.{newest[1] + 1}", scripts.environment.PLATFORMS[0])
    assert PROJECT["requires-python"] == f">={scripts.environment.dotted(scripts.environment.OLDEST)}"


def test_the_scripts_range_of_torch_is_that_of_pyproject(scripts):
    assert f"torch{scripts.environment.torch_range()}" in PROJECT["dependencies"]


def test_make_passes_on_whether_a_python_was_chosen(checkout):
    def commands(*arguments):
        made = make(checkout, "-n", "setup", *arguments)
        assert made.returncode == 0, made.stderr
        return made.stdout

    assert "--python-chosen" not in commands()
    assert "--python-chosen" in commands("PYTHON=python3.12")
    assert '--torch "keep" --torch-index "https://x"' in commands("TORCH=keep", "TORCH_INDEX=https://x")


def test_a_target_that_needs_the_environment_is_not_made_again_while_it_is_kept(checkout):
    """``make embedded`` depends on the marker, which setup leaves alone when it keeps the environment."""
    marker, embedded = checkout / ".venv" / ".ready", checkout / ".venv" / ".embedded"
    marker.parent.mkdir()
    marker.touch()
    embedded.touch()
    (checkout / "requirements" / "embedded.txt").touch()
    os.utime(checkout / "requirements" / "embedded.txt", (1, 1))
    os.utime(marker, (2, 2))
    os.utime(embedded, (3, 3))
    kept = make(checkout, "embedded", "PYTHON=true")
    assert (kept.returncode, kept.stdout) == (0, "")
    os.utime(marker, (4, 4))
    assert make(checkout, "embedded", "PYTHON=true").returncode


def make(checkout, *arguments):
    """Run ``make`` as a user does from a shell, even where ``make test`` runs these tests.

    A ``make`` below another one reads the other's flags and variables and prints the folders that it enters and leaves.
    """
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MAKE_TERMOUT", "MAKE_TERMERR", "PYTHON", "TORCH"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, encoding="utf-8")


def run(checkout, *arguments, python=sys.executable):
    command = [python, "requirements/environment.py", "--python-chosen", *arguments]
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "wheels", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(command, cwd=checkout, env=os.environ | offline, capture_output=True, encoding="utf-8")


@pytest.mark.slow
def test_the_callers_torch_is_used_and_its_environment_is_left_alone(checkout):
    before = sorted(path.name for path in Path(sys.prefix).glob("lib/python*/site-packages/*"))
    done = run(checkout, "--torch", "keep")
    assert done.returncode == 0, done.stderr
    python = checkout / ".venv" / "bin" / "python"
    ask = "import json, leaf, torch, triton; print(json.dumps([leaf.__file__, torch.__file__, triton.__file__]))"
    seen = subprocess.run([python, "-I", "-c", ask], capture_output=True, encoding="utf-8", check=True)
    leaf, torch, triton = json.loads(seen.stdout)
    assert Path(leaf).is_relative_to(checkout / ".venv")
    assert torch == importlib.import_module("torch").__file__
    assert triton == importlib.import_module("triton").__file__
    assert before == sorted(path.name for path in Path(sys.prefix).glob("lib/python*/site-packages/*"))
    again = run(checkout)
    assert (again.returncode, again.stdout) == (0, "setup: .venv is ready\n")

    (checkout / "pyproject.toml").write_text(PYPROJECT.format(floor="99.1"), encoding="utf-8")
    refused = run(checkout)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "torch>=99.1 is needed" in refused.stderr
    assert python.exists()


@pytest.mark.slow
def test_an_environment_without_torch_is_refused_and_real_failures_of_pip_are_explained(checkout, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    refused = run(checkout, "--torch", "keep", python=bare / "bin" / "python")
    assert refused.returncode == 1
    assert "cannot import torch (ModuleNotFoundError: No module named 'torch')" in refused.stderr
    assert not (checkout / ".venv").exists()

    missing = run(checkout)
    assert "no build of torch==2.13.0 fits Python" in missing.stderr

    lock = checkout / "requirements" / "lock.txt"
    lock.write_text(f"leaf==1.0 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    mismatched = run(checkout, "--torch", "stem")
    assert "leaf==1.0 from file:" in mismatched.stderr
    for failed in (missing, mismatched):
        assert failed.returncode == 1
        assert failed.stderr.count("\n") == 1
        log = Path(failed.stderr.split("pip's output: ")[1].strip().rstrip(")"))
        assert "leaf" in log.read_text(encoding="utf-8") or "torch" in log.read_text(encoding="utf-8")
        log.unlink()
    assert not (checkout / ".venv").exists()
