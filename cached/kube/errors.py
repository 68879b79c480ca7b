"""The API server's status codes as Holdfast's errors, split by remedy.

Law: pure. Messages contain the API server's text, never a token or a certificate.
"""

from __future__ import annotations

import json

from cached.contract.errors import HoldfastError, Permanent, Transient

_EXCERPT = 400  # characters of a response that is no Status, such as a proxy's page
_RIGHTS = "apply manifests/base: its ClusterRole has what the daemon needs"
_CREDENTIALS = "check the service account's token, or the user in KUBECONFIG"


class Unreachable(Transient):
    """No response: refused, reset, timed out, or not trusted."""

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(
            "kube_unreachable", f"no answer from {server}: {reason}", "check the API server and the network"
        )


class Gone(Transient):
    """410: the resourceVersion or the continue token is older than the API server's history. List again."""


class NotFound(Permanent):
    """404."""


class Conflict(Transient):
    """409: another client wrote or created the object first."""


def of_status(status: int, body: bytes, doing: str, retry_after_s: float | None = None) -> HoldfastError:
    """Return the error for an HTTP status that is no success, or for the code of an ERROR event."""
    message = f"{doing}: {status} {_excerpt(body)}"
    if status == 410:
        return Gone("kube_gone", message, "list again")
    if status == 401:  # a token that was just rotated is refused for a moment
        return Transient("kube_unauthorized", message, _CREDENTIALS)
    if status == 403:
        return Permanent("kube_forbidden", message, _RIGHTS)
    if status == 404:
        return NotFound("kube_not_found", message, "check the name")
    if status == 409:
        return Conflict("kube_conflict", message, "read it again and try again")
    if status in (408, 429) or status >= 500:
        return Transient("kube_busy", message, "wait", retry_after_s=retry_after_s)
    return Permanent("kube_refused", message, "check that this release supports the cluster's version")


def bad_response(doing: object, detail: str) -> Transient:
    """Return the error for a response that does not follow the API."""
    return Transient("kube_bad_answer", f"{doing}: {detail}", "check what answers at the API server's address")


def _excerpt(body: bytes) -> str:
    """Return the message of a `Status` object, or the beginning of another body."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:_EXCERPT].decode("utf-8", "replace").strip()
