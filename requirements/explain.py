"""Turn the output of a failed pip into one line: what went wrong, and the next command."""

import platform
import re

FULL = re.compile(r"No space left on device|\[Errno 28\]|Disk quota exceeded|\[Errno 122\]|No usable temporary")
MISMATCH = re.compile(r"DO NOT MATCH THE HASHES")
MISMATCHED = re.compile(r"^[^\n]*?(\S+==\S+)[^\n]* from (\S+)", re.M)
UNHASHED = re.compile(r"Hashes are required in --require-hashes mode|must have their versions pinned with ==")
BUILD = re.compile(r"subprocess-exited-with-error|metadata-generation-failed|Failed building|Failed to build")
UNMATCHED = re.compile(r"Could not find a version that satisfies the requirement (.+?) \(from versions: ([^)\n]*)\)")
NO_MATCH = re.compile(r"No matching distribution found for ([^\n]+)")
WRONG_WHEEL = re.compile(r"(\S+\.whl) is not a supported wheel on this platform")
UNTRUSTED = re.compile(r"SSLError|SSLCertVerificationError|CERTIFICATE_VERIFY_FAILED|certificate verify failed", re.I)
UNREACHED = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|Read timed out|ProxyError|"
    r"ConnectionResetError|Connection aborted|Connection refused|Max retries exceeded|Network is unreachable|"
    r"Temporary failure in name resolution|Failed to (?:connect|resolve)|IncompleteRead|incomplete-download"
)
HOSTS = (
    re.compile(r"host='([^']+)'"),
    re.compile(r"Failed to (?:resolve|connect to) '?([\w.-]+)"),
    re.compile(r"https?://(?:[^/@\s]+@)?([\w.-]+)"),
)
READ_ONLY = re.compile(r"Read-only file system|Permission denied|\[Errno 30\]|\[Errno 13\]")
ERROR = re.compile(r"^(?:\S+ +)?ERROR: (.+)$", re.M)


def host_in(output: str, otherwise: str) -> str:
    """The host of the first line that tells of a failed connection."""
    lines = [line for line in output.splitlines() if UNREACHED.search(line) or UNTRUSTED.search(line)]
    lines += [line for line in output.splitlines() if "Could not fetch URL" in line]
    for pattern in HOSTS:
        for line in lines:
            found = pattern.search(line)
            if found:
                return found.group(1)
    return otherwise


def no_match(wanted: str, offered: str) -> str:
    """Nothing that the index offers fits this Python and this platform."""
    here = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    versions = [version.strip() for version in offered.split(",") if version.strip() not in ("", "none")]
    known = f" (the index offers {', '.join(versions[-4:])})" if versions else ""
    if re.match(r"(torch\b(?!-)|\S+\.whl)", wanted):
        advice = (
            "make setup TORCH=torch==VERSION TORCH_INDEX=URL, with a build of https://pytorch.org/get-started/locally"
        )
        return f"no build of {wanted} fits {here}{known}. Next: {advice}"
    return f"no wheel of {wanted} fits {here}{known}. Next: make setup PYTHON=python3.12, or another machine"


def explain(step: str, output: str, index: str = "", requirements: str = "requirements/lock.txt") -> str:
    """One line for pip's ``output``, which ended ``step`` with an error."""
    if FULL.search(output):
        return f"the disk is full ({step}). Next: df -h . ${{TMPDIR:-/tmp}}, free some room, make setup"
    if MISMATCH.search(output):
        found = MISMATCHED.search(output, MISMATCH.search(output).end())
        what = f"{found.group(1)} from {found.group(2)}" if found else "a downloaded file"
        advice = f"git checkout {requirements} && PIP_NO_CACHE_DIR=1 make setup"
        return f"{what} has another hash than {requirements} names, and is not installed. Next: {advice}"
    if UNHASHED.search(output):
        return f"{requirements} has a line without ==version or hash. Next: git checkout {requirements} && make setup"
    unmatched = UNMATCHED.search(output)
    offered = unmatched.group(2) if unmatched else ""
    if unmatched and offered.strip() not in ("", "none"):
        return no_match(unmatched.group(1), offered)
    if not BUILD.search(output):
        if UNTRUSTED.search(output):
            host = host_in(output, "the package index")
            return f"the certificate of {host} is not trusted ({step}). Next: PIP_CERT=/path/to/ca.pem make setup"
        if UNREACHED.search(output):
            host = host_in(output, index.split("://")[-1].split("/")[0].split("@")[-1])
            look = f"curl -I https://{host}" if host else "a look at the network"
            return f"{host or 'the package index'} cannot be reached ({step}). Next: {look}, then make setup"
    wanted = unmatched or NO_MATCH.search(output) or WRONG_WHEEL.search(output)
    if wanted:
        return no_match(wanted.group(1).strip(), "")
    if READ_ONLY.search(output):
        return f"a folder cannot be written ({step}). Next: ls -ld . .venv, then make setup in a checkout of yours"
    errors = ERROR.findall(output)
    why = ([line.strip() for line in errors or output.splitlines() if line.strip()] or ["no output"])[-1]
    return f"{step}: {why.rstrip('.')}. Next: make setup, after a look at the whole output"
