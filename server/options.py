"""What `holdfast serve` is told, from the command line and `HOLDFAST_…` variables.

Law: parses and checks, imports nothing heavy, touches no disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import InvalidReference
from cached.contract.layout import DEFAULT_MOUNT, PublicLayout
from cached.contract.options import OptionParser, parse_address
from cached.contract.reference import ModelRef
from cached.contract.units import parse_size


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask: `body_bytes` a request, `queue` requests waiting, `max_tokens` generated a prompt."""

    body_bytes: int
    queue: int
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Settings:
    """One server. `served_name` is None where the model's own name is good; `app` is None for our own API."""

    model_path: Path
    served_name: str | None
    host: str
    port: int
    device: str
    dtype: str
    app: str | None
    drain_timeout_s: float
    limits: Limits


def parse(argv: Sequence[str]) -> Settings:
    """Read the options; exits with 2 where they are wrong."""
    parser = _parser()
    found = parser.parse_args(argv)
    host, port = found.listen
    return Settings(
        model_path=_model_path(parser, found.model_path, found.model, found.version, found.root, argv),
        served_name=found.served_name,
        host=host,
        port=port,
        device=found.device,
        dtype=found.dtype,
        app=found.app,
        drain_timeout_s=found.drain_timeout,
        limits=Limits(found.body_limit, found.queue_limit, found.max_tokens_limit),
    )


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="holdfast serve", description="Load a version and answer inference requests.", allow_abbrev=False
    )
    parser.option("--model-path", type=Path, help="the model's folder", metavar="DIR")
    parser.option("--model", help="the model's name, where --model-path is not given", metavar="NAME")
    parser.option("--version", help="the model's version, with --model", metavar="VERSION")
    parser.option(
        "--root", type=Path, default=DEFAULT_MOUNT, help="the daemon's public folder as seen here, with --model"
    )
    parser.option("--listen", type=parse_address, default=("0.0.0.0", 8080), help="address to serve on; port 0: any")  # noqa: S104 a pod serves on all its addresses
    parser.option("--device", type=_device, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.option(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="type of the weights; auto: the checkpoint's",
    )
    parser.option("--served-name", help="the model's name for clients; default: its name in the cache", metavar="NAME")
    parser.option("--app", type=_target, help="serve package.module:factory instead", metavar="MODULE:FACTORY")
    parser.option("--max-tokens-limit", type=_positive, help="most tokens a request may generate", metavar="N")
    parser.option("--queue-limit", type=_positive, default=64, help="most requests that wait their turn", metavar="N")
    parser.option("--body-limit", type=parse_size, default=parse_size("4MiB"), help="largest request", metavar="SIZE")
    parser.option("--drain-timeout", type=_seconds, default=30.0, help="seconds to finish in on SIGTERM", metavar="S")
    return parser


def _model_path(
    parser: OptionParser, path: Path | None, model: str | None, version: str | None, root: Path, argv: Sequence[str]
) -> Path:
    given = {argument.partition("=")[0] for argument in argv}
    if {"--model-path", "--model"} <= given:
        parser.error("give either --model-path or --model and --version, not both")
    # The injector sets HOLDFAST_MODEL_PATH: --model on the command line still wins over it.
    if path is not None and ("--model-path" in given or "--model" not in given):
        return path
    if model is None or version is None:
        parser.error("expected --model-path DIR (or HOLDFAST_MODEL_PATH), or --model NAME with --version VERSION")
    try:
        return PublicLayout(root).model_link(ModelRef(model, version))
    except InvalidReference as error:
        parser.error(str(error))


def _device(text: str) -> str:
    kind, colon, number = text.partition(":")
    if text in ("auto", "cpu", "cuda") or (kind == "cuda" and colon and number.isascii() and number.isdigit()):
        return text
    raise ValueError(f"expected auto, cpu, cuda or cuda:N, found {text!r}")


def _target(text: str) -> str:
    module, colon, factory = text.partition(":")
    if not colon or not factory.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"expected package.module:factory, found {text!r}")
    return text


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise ValueError(f"expected a whole number from 1, found {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise ValueError(f"expected seconds, found {text!r}")
    return value
