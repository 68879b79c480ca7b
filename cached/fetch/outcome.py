"""One try at a version, and its outcome: published, or the error that says why not.

Law: a try raises nothing but its own cancellation. Whatever it meets concerns this version, and no other one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.program import limits
from cached.core.demand import Want
from cached.fetch.version import Published, VersionFetches
from cached.store.disk.durable import disk_error

_log = logging.getLogger(__name__)


async def try_fetch(
    transfers: VersionFetches, want: Want, urgency: Callable[[], int], got_space: Callable[[], None]
) -> Published | HoldfastError:
    """Call `VersionFetches.fetch`, and return its error: `Transient` where another try may do better."""
    doing = f"fetching {want.ref}"
    try:
        return await transfers.fetch(want, urgency, got_space)
    except HoldfastError as error:
        return error
    except OSError as error:
        return _caused(disk_error(error, doing), error)
    except Exception as error:  # noqa: BLE001 - a bug that one version brings out must not end the others
        short = limits.find_limit_error(error, doing)
        if short is not None:
            return _caused(short, error)
        _log.exception("%s", want.ref)
        return Permanent("internal", f"{want.ref}: {error!r}", "report this with the daemon's log")


def _caused(error: HoldfastError, cause: Exception) -> HoldfastError:
    error.__cause__ = cause
    return error
