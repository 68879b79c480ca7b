"""What locations share: a key, and parameters after a `?`, as in `s3://bucket/prefix/?name=value`.

Law: pure. An error names the part and never quotes its value, which may be a secret; `refuse` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from urllib.parse import parse_qsl, quote, urlsplit

from cached.contract.errors import Permanent

Refuse = Callable[[str], Permanent]


def parse_parameters(query: str, known: Collection[str], secrets: Mapping[str, str], refuse: Refuse) -> dict[str, str]:
    """Return the parameters in `query`, of which each is `known` and given once. `secrets`: what is said of a parameter
    that is a secret. Raises the error of `refuse`."""
    try:
        pairs = parse_qsl(query, keep_blank_values=False, strict_parsing=True) if query else []
    except ValueError as error:
        raise refuse("expected parameters as ?name=value&name=value") from error
    unknown = sorted({name for name, _ in pairs} - set(known))
    for name in secrets.keys() & set(unknown):
        raise refuse(secrets[name])
    if unknown:
        raise refuse(f"expected parameters among {', '.join(known)}, found {', '.join(unknown)[:200]}")
    if len(dict(pairs)) != len(pairs):
        raise refuse("a parameter is given twice")
    return dict(pairs)


def check_endpoint(endpoint: str, name: str, form: str, refuse: Refuse) -> None:
    """Raise the error of `refuse` unless `endpoint`, which the parameter or variable `name` gives, is a URL of the
    `form` for people, without credentials."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError as error:
        raise refuse(f"{name}: not a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise refuse(f"{name}: expected {form}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise refuse(f"{name}: found credentials, a query or a fragment in it")


def as_prefix(key: str) -> str:
    """Return a key as a folder: empty, or with a slash at its end."""
    return key if not key or key.endswith("/") else f"{key}/"


def show_endpoint(endpoint: str | None) -> str:
    """Return the parameter that names `endpoint`, for messages; empty for None."""
    return f"?endpoint_url={quote(endpoint, safe=':/')}" if endpoint else ""
