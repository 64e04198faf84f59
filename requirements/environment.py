"""Make the virtual environment of this checkout (``make setup``), or say in one line why it cannot be made.

This file and explain.py use the standard library alone and parse under Python 3.6, so that an old Python is refused
with a sentence. A good environment is kept; one of another choice, or unfinished, is built anew. The old one stands
aside as .venv.old until the new one is ready, and comes back if that fails.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from explain import FULL, explain

OLDEST, NEWEST = (3, 11), (3, 13)  # pyproject.toml says the same
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PLATFORMS = ("linux x86_64", "linux aarch64", "darwin arm64")  # as [tool.uv] environments in pyproject.toml
INPUTS = ("lock.txt", "triton.txt", "torch.txt")

# Run by the Python that has torch: where torch and triton lie, and the folders that hold its packages
PROBE = """
import importlib.util, json, os, sys, sysconfig
import torch
stdlib = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
stdlib |= {os.path.join(folder, "lib-dynload") for folder in stdlib} | {"", os.getcwd()}
triton = importlib.util.find_spec("triton")
home = os.path.dirname(os.path.dirname(os.path.abspath(torch.__file__)))
sites = [home] + [os.path.abspath(p) for p in sys.path if p not in stdlib and os.path.isdir(p) and p != home]
print(json.dumps({"version": torch.__version__, "file": os.path.abspath(torch.__file__), "sites": sites,
                  "triton": bool(triton and triton.origin)}))
"""


class Refusal(Exception):
    """One line: what is wrong, and the next command."""


def read(*parts: str) -> str:
    """The text of a file of the checkout."""
    try:
        with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
            return file.read()
    except OSError:
        raise Refusal(f"{'/'.join(parts)} is missing. Next: git checkout {'/'.join(parts)} && make setup") from None


def digest() -> str:
    """A hash of all that decides what is installed: the requirement files, and pyproject's tables about the project."""
    table, kept = "", []
    for line in read("pyproject.toml").splitlines():
        table = line.strip() if line.startswith("[") else table
        if table.startswith(("[project", "[build-system", "[tool.hatch")):
            kept.append(line)
    texts = [read("requirements", name) for name in INPUTS] + ["\n".join(kept)]
    return hashlib.sha256("\0".join(texts).encode("utf-8")).hexdigest()


def default_torch() -> str:
    """The one requirement in requirements/torch.txt."""
    lines = [line.partition("#")[0].strip() for line in read("requirements", "torch.txt").splitlines()]
    return next(line for line in lines if line)


def release(version: str) -> tuple:
    """2.13.0a0+git1 as (2, 13, 0): builds of vendors carry the number of the release that they lead to."""
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", version).group().split("."))


def torch_range() -> str:
    """What pyproject.toml asks of torch, such as ``>=2.11``."""
    return re.search(r"[\"']torch\s*([^\"';\[]*)[\"';]", read("pyproject.toml")).group(1).strip()


def in_range(version: str, wanted: str) -> bool:
    """Whether a version meets clauses such as ``>=2.11,<3``."""
    mine = release(version)
    for clause in filter(None, wanted.split(",")):
        sign, bound = re.match(r"\s*(>=|<=|!=|==|<|>)\s*([\d.]+)\s*$", clause).groups()
        theirs = release(bound)
        left, right = (value + (0,) * (4 - len(value)) for value in (mine, theirs))
        met = {">=": left >= right, "<=": left <= right, "<": left < right, ">": left > right}
        if not met.get(sign, (left == right) == (sign == "==")):
            return False
    return True


def dotted(version: tuple) -> str:
    """(3, 12, 1) as 3.12."""
    return ".".join(str(part) for part in version[:2])


def packages() -> str:
    """The command that completes a Python which Debian ships in parts."""
    return f"sudo apt install python{dotted(sys.version_info)}-venv, or make setup PYTHON=python3.12"


def check_python(version: tuple, executable: str) -> None:
    """Refuse a Python for which the lock has no packages."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        mine, oldest, newest = dotted(version), dotted(OLDEST), dotted(NEWEST)
        raise Refusal(
            f"{executable} is Python {mine}; Python {oldest} to {newest} is needed. Next: make setup PYTHON=python3.12"
        )


def check_platform() -> None:
    """Refuse a platform for which the lock has no packages: pip would skip every line and say nothing."""
    here = f"{sys.platform} {platform.machine()}"
    if here not in PLATFORMS:
        raise Refusal(f"the lock is for {', '.join(PLATFORMS)}, and this is {here}. Next: pip install -e '.[dev]'")


def run(command: list, **options: object) -> subprocess.CompletedProcess:
    """Run a command apart from the caller's Python settings, both output streams as one text."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIREMENT")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env.update(PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    options = {"cwd": ROOT, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
    return subprocess.run(command, encoding="utf-8", errors="replace", **options)


def probe(python: str, inherited: bool) -> dict:
    """Import torch in a Python and say where it and its packages lie."""
    settings = {"env": dict(os.environ)} if inherited else {}
    done = run([python, "-c", PROBE], cwd=os.path.abspath(os.sep), stderr=subprocess.PIPE, **settings)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise Refusal(f"TORCH=keep: {python} cannot import torch ({why}). Next: make setup PYTHON=/path/to/its/python")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Environment:
    """The environment at ``path``, its marker and its making."""

    def __init__(self, path: str, torch: str, index: str, python_chosen: bool) -> None:
        self.path = os.path.abspath(path)
        self.old = self.path + ".old"
        self.python = os.path.join(self.path, "bin", "python")
        self.marker = os.path.join(self.path, ".ready")
        self.inside = os.path.realpath(sys.prefix) == os.path.realpath(self.path)
        self.python_chosen = (python_chosen or torch == "keep") and not self.inside
        if not os.path.exists(self.marker) and os.path.exists(os.path.join(self.old, ".ready")):
            put_back(self.old, self.path)  # a build was killed
        self.record = self.recorded()
        if not (torch or index):  # as chosen before
            torch, index = self.record.get("torch", ""), self.record.get("index", "")
        self.torch, self.index = torch, index
        self.keep = self.torch == "keep"

    def recorded(self) -> dict:
        """What the marker says; nothing where it is absent or damaged."""
        try:
            with open(self.marker, encoding="utf-8") as file:
                record = json.load(file)
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def fault(self) -> str:
        """Why the environment cannot be used as it is, or nothing."""
        if not os.path.lexists(self.path):
            return "none is there"
        if not self.record:
            return "it is unfinished"
        if (self.torch, self.index) != (self.record.get("torch"), self.record.get("index")):
            return "another torch is asked for"
        if self.record.get("path") != self.path:
            return "it was moved"
        if self.record.get("digest") != digest():
            return "the requirements changed"
        wanted = self.record.get("python")
        if self.python_chosen and wanted != list(sys.version_info[:2]):
            return "another Python is asked for"
        if self.keep and self.python_chosen and self.record.get("prefix") != sys.prefix:
            return "torch of another environment is asked for"
        if self.keep and not os.path.exists(self.record.get("torch_file", "")):
            return "the torch that it used is gone"
        ask = [self.python, "-I", "-S", "-c", "import sys; print(list(sys.version_info[:2]))"]
        try:
            alive = run(ask).stdout.strip() == str(wanted)
        except OSError:
            alive = False
        return "" if alive and OLDEST <= tuple(wanted) <= NEWEST else "its Python is gone"

    def pip(self, step: str, log: str, *arguments: str, requirements: str = "requirements/lock.txt") -> str:
        """Run pip in the environment; a failure becomes one line."""
        print(f"setup: {step}", flush=True)
        done = run([self.python, "-I", "-m", "pip", "--log", log, *arguments])
        if done.returncode:
            with open(log, "a+", encoding="utf-8", errors="replace") as file:
                file.seek(0)
                output = done.stdout + "\n" + file.read()
                file.write("\n" + done.stdout)
            raise Refusal(explain(step, output, self.index, requirements))
        return done.stdout

    def has(self, package: str) -> bool:
        """Whether the environment holds a package."""
        ask = f"import importlib.util as u; s = u.find_spec({package!r}); raise SystemExit(not (s and s.origin))"
        return run([self.python, "-I", "-c", ask]).returncode == 0

    def build(self, log: str) -> None:
        """Make the environment and install into it; the marker is written last."""
        kept = {}
        if self.keep:
            kept = probe(sys.executable, inherited=True)
            if not in_range(kept["version"], torch_range()):
                asked = f"{kept['file']} is torch {kept['version']}; torch{torch_range()} is needed"
                raise Refusal(f"TORCH=keep: {asked}. Next: make setup, which installs {default_torch()}")
        base = getattr(sys, "_base_executable", sys.executable) if self.inside else sys.executable
        made = run([base, "-m", "venv", self.path])
        if made.returncode:
            with open(log, "a", encoding="utf-8") as file:
                file.write(made.stdout)
            if "ensurepip is not available" in made.stdout:
                raise Refusal(f"{base} cannot make an environment with pip. Next: {packages()}")
            room = min(shutil.disk_usage(folder).free for folder in (ROOT, tempfile.gettempdir()))
            raise Refusal(explain("making .venv", made.stdout if room > 2**25 else "No space left on device"))
        hashed = ("install", "--no-deps", "--require-hashes", "-r")
        if not self.keep:
            torch = self.torch or default_torch()
            self.pip(f"installing {torch}", log, "install", *(["--index-url", self.index] if self.index else []), torch)
        if sys.platform.startswith("linux") and not (kept["triton"] if kept else self.has("triton")):
            file = "requirements/triton.txt"
            self.pip("installing triton", log, *hashed, file, requirements=file)
        self.pip("installing requirements/lock.txt", log, *hashed, "requirements/lock.txt")
        self.pip("installing the project", log, "install", "--no-deps", "--no-build-isolation", "-e", ".")
        if self.keep:
            self.borrow(kept)
        else:
            self.check(log)
        record = {
            "path": self.path, "digest": digest(), "torch": self.torch, "index": self.index, "prefix": sys.prefix,
            "caller": base, "python": list(sys.version_info[:2]), "torch_file": kept.get("file", ""),
        }  # fmt: skip
        with open(self.marker, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)

    def borrow(self, kept: dict) -> None:
        """Show the caller's packages to the environment, after its own.

        The file comes after all installs: pip then sees nothing of the caller's environment, and changes nothing there.
        """
        lib = os.path.join(self.path, "lib", f"python{dotted(sys.version_info)}", "site-packages")
        sites = [site for site in kept["sites"] if os.path.realpath(site) != os.path.realpath(ROOT)]
        with open(os.path.join(lib, "zz_kept_torch.pth"), "wb") as file:  # the last in order of names
            file.write(os.fsencode("".join(site + "\n" for site in sites)))
        seen = probe(self.python, inherited=False)
        if os.path.realpath(seen["file"]) != os.path.realpath(kept["file"]):
            raise Refusal(f"TORCH=keep: .venv imports {seen['file']}, not {kept['file']}. Next: unset PYTHONPATH")

    def check(self, log: str) -> None:
        """``pip check``, but a triton under another name (ROCm) counts as triton."""
        done = run([self.python, "-I", "-m", "pip", "--log", log, "check"])
        faults = [line for line in done.stdout.splitlines() if " requires " in line or " has requirement " in line]
        faults = [line for line in faults if "triton, which is not installed" not in line or not self.has("triton")]
        if faults or (done.returncode and " requires " not in done.stdout):
            why = faults[0] if faults else "pip check failed"
            raise Refusal(f"{why.rstrip('.')}. Next: make setup TORCH={default_torch()}")


def remove(path: str) -> None:
    """Delete a folder or a link."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def put_back(old: str, path: str) -> None:
    """Put the older environment in the place of an unfinished one."""
    remove(path)
    if os.path.lexists(old):
        os.rename(old, path)


def replace(environment: Environment) -> None:
    """Build the environment; on any failure the unfinished one goes and the older one comes back."""
    try:
        with tempfile.TemporaryDirectory(prefix=".setup-", dir=os.path.dirname(environment.path)):
            remove(environment.old)
        log = tempfile.mkstemp(prefix="lit-safe-setup-", suffix=".log")[1]
    except OSError as error:
        if FULL.search(str(error)):
            raise Refusal(explain("making .venv", str(error))) from None
        where = os.path.dirname(environment.path)
        raise Refusal(f"{where} cannot be written. Next: cp -r {where!r} ~/ and make setup there") from None
    if os.path.lexists(environment.path):
        os.rename(environment.path, environment.old)
    try:
        environment.build(log)
    except BaseException as error:
        put_back(environment.old, environment.path)
        if isinstance(error, OSError):
            error = Refusal(explain("making .venv", str(error)))
        empty = not os.path.getsize(log)
        if empty:
            os.unlink(log)
        if isinstance(error, Refusal) and not empty:
            raise Refusal(f"{error} (pip's output: {log})") from None
        raise error from None
    os.unlink(log)
    remove(environment.old)


def alone() -> object:
    """Refuse where another call is at work in this checkout; the lock lasts as long as the process."""
    file = open(os.path.abspath(__file__), encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Refusal("another make setup is at work in this checkout. Next: wait for it, then make setup") from None
    except OSError:  # a file system without locks
        pass
    return file


def set_up(arguments: argparse.Namespace) -> str:
    """Keep or build the environment, and say which."""
    environment = Environment(arguments.venv, arguments.torch, arguments.torch_index, arguments.python_chosen)
    name = os.path.basename(environment.path)
    fault = environment.fault()
    if not fault:
        return f"{name} is ready"
    caller = environment.record.get("caller", "")
    if not environment.python_chosen and caller not in ("", sys.executable) and os.path.exists(caller):
        os.execv(caller, [caller, os.path.abspath(__file__), *sys.argv[1:], "--python-chosen"])
    check_python(sys.version_info, sys.executable)
    check_platform()
    if environment.keep and environment.inside:
        advice = "make setup TORCH=keep PYTHON=/path/to/python"
        raise Refusal(f"TORCH=keep: {sys.executable} is {name}'s own Python. Next: {advice}")
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise Refusal(f"{sys.executable} has no {module}. Next: {packages()}")
    print(f"setup: making {name} ({fault})", flush=True)
    replace(environment)
    return f"{name} is ready"


def main() -> int:
    """Print what was done, or one line about what is wrong and the exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=".venv", help="folder of the environment")
    parser.add_argument("--torch", default="", help="requirement, wheel or 'keep'; empty: as before, or torch.txt's")
    parser.add_argument("--torch-index", default="", help="index that torch alone is taken from")
    parser.add_argument("--python-chosen", action="store_true", help="the user named this Python")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parser.parse_args()
    try:
        lock = alone()
        print(f"setup: {set_up(arguments)}")
        lock.close()
    except Refusal as refusal:
        print(f"setup: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted. Next: make setup", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
