"""A pytest plugin: the safetensors package's readers are this repository's for every test of the session.

Law: replaces names before the tests import them, and nothing else. Loaded with `-p tests.support.safetensors_names`.
"""

from __future__ import annotations

from typing import Any

import safetensors
import safetensors.numpy
import safetensors.torch

import server

_MODULES: tuple[Any, ...] = (safetensors, safetensors.numpy, safetensors.torch)

for _module in _MODULES:
    _module.safe_open = server.safe_open  # also that of safetensors.numpy.load_file
_MODULES[2].load_file = server.load_file
_MODULES[2].load_model = server.load_model
