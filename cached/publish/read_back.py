"""The sha256 of what a store has, from its bytes.

Law: memory is bounded; all bytes are of one object, which its target binds; a broken answer is asked for again where it
ended.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator

from cached.contract.errors import Transient
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget

_READ_BYTES = 1024 * 1024
_ATTEMPTS = 5  # without a byte of progress in between
_WAIT_S = 1.0


def hash_stored(
    client: HttpClient, locate: Callable[[Cancellation], HttpTarget], size: int, cancellation: Cancellation
) -> str:
    """Return the sha256 of the `size` bytes of an object; blocking. `locate` returns its address, freshly authorized.
    Raises `Transient`, `Permanent` and `Cancelled`."""
    sha, done, failures = hashlib.sha256(), 0, 0
    while done < size:
        before = done
        try:
            for part in _parts(client, locate(cancellation), done, size, cancellation):
                sha.update(part)
                done += len(part)
            failure = Transient("bad_response", f"expected an object of {size} bytes, found {done}", "publish again")
        except Transient as error:
            failure = error
        failures = 0 if done > before else failures + 1
        if failures == _ATTEMPTS or failure.code == "source_changed":
            raise failure
        cancellation.check()
        if done < size:
            time.sleep(_WAIT_S)
    return sha.hexdigest()


def _parts(
    client: HttpClient, target: HttpTarget, start: int, size: int, cancellation: Cancellation
) -> Iterator[memoryview]:
    """Yield the bytes from `start`; a view is valid until the next one."""
    view = memoryview(bytearray(_READ_BYTES))
    with client.get(target, start, size - start, cancellation) as body:
        skipped = start - body.start  # a server may send the whole object
        while count := body.readinto(view):
            fresh = view[min(skipped, count) : count]
            skipped -= count - len(fresh)
            yield fresh
