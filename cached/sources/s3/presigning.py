"""Signing of many GETs of one bucket's objects, as botocore does, without its cost for each.

Law: pure. The bucket's address and the signing scope come from one URL that botocore signed itself; if this module
cannot reproduce that URL exactly, botocore signs. The format: AWS Signature Version 4, "Authenticating Requests: Using
Query Parameters".
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, field
from hashlib import sha256
from urllib.parse import parse_qsl, quote, urlsplit

from cached.transport.target import Headers

# All characters of a key that a URL writes differently.
PROBE_KEY = "/a b/./../+%ä~'()*:@&=$,;#?"
_ALGORITHM = "AWS4-HMAC-SHA256"
_SIGNED = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders")
_TOKEN, _SIGNATURE = "X-Amz-Security-Token", "X-Amz-Signature"


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """An access key, its secret, and the session token, if any."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False)


class Presigner:
    """Signs GETs below `base`, a URL that ends where the key begins. `headers` are sent and signed."""

    def __init__(self, base: str, scope: str | None, headers: Headers) -> None:
        """`scope`: region and service of a signature, as `us-east-1/s3/aws4_request`; None for unsigned URLs."""
        parts = urlsplit(base)
        self._base = base
        self._path = parts.path
        self._scope = scope
        signed = sorted((("host", parts.netloc), *headers))
        self._headers = "".join(f"{name}:{value}\n" for name, value in signed)
        self._names = ";".join(name for name, _ in signed)
        self._derived: tuple[tuple[str, str], bytes] | None = None

    @classmethod
    def learn(cls, url: str, keys: SigningKeys | None, headers: Headers) -> Presigner | None:
        """Return a presigner from botocore's `url` for `PROBE_KEY` and `keys`; None if it cannot reproduce that."""
        parts, ending = urlsplit(url), _quoted(PROBE_KEY)
        if not parts.path.endswith(ending):
            return None
        base = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix(ending)}"
        given = dict(parse_qsl(parts.query))
        if not given:
            return cls(base, None, headers)
        credential = given.get("X-Amz-Credential", "").split("/", 2)
        lifetime = given.get("X-Amz-Expires", "")
        if keys is None or len(credential) != 3 or not lifetime.isdecimal():
            return None
        presigner = cls(base, credential[2], headers)
        return presigner if presigner.sign(PROBE_KEY, keys, int(lifetime), given.get("X-Amz-Date")) == url else None

    def sign(self, key: str, keys: SigningKeys | None, lifetime_s: int, at: str | None = None) -> str:
        """Return a URL that reads the object `key` without credentials. `at`: the time as `20261129T181239Z`, else now.
        `keys`: None only for unsigned URLs."""
        if self._scope is None:
            return self._base + _quoted(key)
        assert keys is not None
        at = at or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{at[:8]}/{self._scope}"
        values = (_ALGORITHM, f"{keys.access_key}/{scope}", at, str(lifetime_s), self._names)
        query = "&".join(f"{name}={_encoded(value)}" for name, value in zip(_SIGNED, values, strict=True))
        if keys.token is not None:
            query += f"&{_TOKEN}={_encoded(keys.token)}"
        canonical = "&".join(sorted(query.split("&")))
        path = _quoted(key)
        request = f"GET\n{self._path}{path}\n{canonical}\n{self._headers}\n{self._names}\nUNSIGNED-PAYLOAD"
        text = f"{_ALGORITHM}\n{at}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        signature = hmac.new(self._key(keys, scope), text.encode(), sha256).hexdigest()
        return f"{self._base}{path}?{query}&{_SIGNATURE}={signature}"

    def _key(self, keys: SigningKeys, scope: str) -> bytes:
        """Return the signing key, which is the same all day."""
        if self._derived is None or self._derived[0] != (keys.secret_key, scope):
            derived = f"AWS4{keys.secret_key}".encode()
            for part in scope.split("/"):
                derived = hmac.new(derived, part.encode(), sha256).digest()
            self._derived = (keys.secret_key, scope), derived
        return self._derived[1]


def _quoted(key: str) -> str:
    return quote(key, safe="/~")


def _encoded(value: str) -> str:
    return quote(value, safe="-._~")
