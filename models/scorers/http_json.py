"""Sends JSON to a server and reads its JSON answer; waits and tries again after passing errors.

Standard library only. A redirect is not followed: it would send the key and the texts to another host.
"""

from __future__ import annotations

import json
import logging
import time
from email.message import Message
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

log = logging.getLogger(__name__)

LOCAL = ("127.0.0.1", "localhost", "::1")
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Status codes after which the same request may succeed."""
LONGEST_WAIT = 120.0
"""Seconds."""


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def check_url(url: str, *, has_key: bool) -> None:
    """Check the address of a server.

    Raises:
        ValueError: If it is no address, holds a password, or would send a key unencrypted to another machine.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must begin with http:// or https:// and name a host, got {url!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url must hold no user name and no password: give the key in an environment variable")
    if has_key and parts.scheme == "http" and parts.hostname not in LOCAL:
        raise ValueError(f"url {url!r} would send the key unencrypted: use https, or key_variable null")


def post_json(url: str, body: object, *, key: str | None, timeout: float, retries: int, first_wait: float = 1.0) -> Any:
    """The JSON answer to a request.

    Args:
        url: The address.
        body: JSON values.
        key: Sent as a bearer token. It is in no message.
        timeout: Seconds until a try counts as failed.
        retries: Further tries after a passing error. Each waits twice as long as the one before, or as long as the
            server asks (``Retry-After``), at most two minutes.
        first_wait: Seconds before the first further try.

    Raises:
        ConnectionError: If the last try failed with a passing error.
        ValueError: If the server refuses the request for good, redirects it, or answers no JSON.
    """
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    data = json.dumps(body).encode()
    opener = build_opener(_NoRedirect)
    why = ""
    for turn in range(retries + 1):
        wait = min(first_wait * 2**turn, LONGEST_WAIT)
        try:
            with opener.open(Request(url, data, headers, method="POST"), timeout=timeout) as answer:
                return _parsed(url, answer.read())
        except HTTPError as error:
            with error:
                why = f"status {error.code}{_reason(error, key)}"
                wait = _asked_wait(error.headers, wait)
            if error.code not in PASSING:
                raise ValueError(f"{url} refuses the request ({why})") from None
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
        if turn < retries:
            log.info("%s: %s; try %d of %d in %.0f s", url, why, turn + 2, retries + 1, wait)
            time.sleep(wait)
    raise ConnectionError(f"{url} did not answer in {retries + 1} tries (the last: {why})")


def _parsed(url: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise ValueError(f"{url} answers no JSON, but {content[:60]!r}") from None


def _asked_wait(headers: Message, wait: float) -> float:
    """The seconds that the server asks for, or ``wait``."""
    try:
        asked = float(headers.get("Retry-After", ""))
    except ValueError:  # none, or a date
        return wait
    return min(max(asked, 0.0), LONGEST_WAIT)


def _reason(error: HTTPError, key: str | None) -> str:
    """The beginning of what the server says, without the key, which a server may repeat."""
    try:
        said = " ".join(error.read(400).decode("utf-8", "replace").split())
    except (OSError, HTTPException):
        return ""
    if key:
        said = said.replace(key, "...")
    return f": {said[:200]}" if said else ""
