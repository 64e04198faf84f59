"""Write lock.txt from pip's own resolution of pyproject's ranges: ``python requirements/lock.py`` (make lock).

One hash a package, that of the file pip would install here, so the lock is for one platform and one Python. torch is
left out: its build (CPU or a CUDA version) is the user's choice and is installed first.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Resolve without installing, and write name==version --hash lines."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--constraint", str(HERE / "torch.txt"), "--report", str(report), f"{HERE.parent}[dev]"]
        subprocess.run(command, check=True)
        resolved = json.loads(report.read_text())["install"]
    lines = []
    for item in resolved:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name in ("torch", "lit-safe"):
            continue
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name.lower().replace('_', '-')}=={version} --hash=sha256:{digest}")
    where = f"{platform.system()} {platform.machine()}, CPython {platform.python_version().rsplit('.', 1)[0]}"
    header = f"# Resolved from pyproject.toml for {where}, torch apart. Written by `make lock`; not edited by hand.\n"
    (HERE / "lock.txt").write_text(header + "\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    main()
