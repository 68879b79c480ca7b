"""The node label of a ready version: `weights.holdfast.dev/<first 40 hex of the manifest digest>=ready`.

Law: pure. The daemon sets the label, the injector's node affinity selects it.
"""

from __future__ import annotations

from cached.contract.digest import Digest

PREFIX = "weights.holdfast.dev/"
READY = "ready"
_HEX_DIGITS = 40  # a label's name may have 63 characters; 160 bits are as many as git trusts


def weights_label(digest: Digest) -> str:
    """Return the label's key for a snapshot; its value is `READY`."""
    return PREFIX + digest.hex[:_HEX_DIGITS]
