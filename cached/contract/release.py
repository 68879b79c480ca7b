"""The version of this release. Law: a constant; to ask for the installed package's metadata takes a start 15 ms."""

from __future__ import annotations

VERSION = "0.1.0"
