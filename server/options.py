"""The options of `holdfast serve`, from the command line and `HOLDFAST_…` variables.

Law: parses and checks, imports nothing heavy, reads no disk but to see whether there is a termination log.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import DEFAULT_MOUNT, PublicLayout
from cached.contract.program.options import OptionParser, parse_address
from cached.contract.program.termination_log import DEFAULT_TERMINATION_LOG, find_termination_log
from cached.contract.program.units import parse_size
from cached.contract.reference import ModelRef, add_pins, parse_models
from server.engine.types import Limits
from server.lifecycle.entries import GoldenMode, ModelEntry, ServeOptions, entries_of

_SOURCES = ("--follow", "--models", "--model-path", "--model")  # of the models: the first that is given


def parse(argv: Sequence[str]) -> ServeOptions:
    """Parse the options; exits with 2 where they are invalid."""
    parser = _parser()
    found = parser.parse_args(argv)
    host, port = found.listen
    follow, models = _models(parser, found, argv)
    if follow is not None and found.app is not None:
        parser.error("expected --app without --follow: user code replaces its models itself")
    return ServeOptions(
        models=models,
        follow=follow,
        root=found.root,
        host=host,
        port=port,
        device=found.device,
        dtype=found.dtype,
        app=found.app,
        drain_linger_s=found.drain_linger,
        drain_timeout_s=found.drain_timeout,
        probe_interval_s=found.probe_interval,
        probe_timeout_s=found.probe_timeout,
        golden=GoldenMode(found.golden),
        termination_log=find_termination_log(found.termination_log),
        limits=Limits(
            found.body_limit, found.queue_limit, found.max_tokens_limit, found.batch_limit, found.cache_limit
        ),
        tracing=found.tracing,
    )


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="holdfast serve", description="Load a version and answer inference requests.", allow_abbrev=False
    )
    _add_model_options(parser)
    _add_limit_options(parser)
    _add_stop_and_probe_options(parser)
    log, usual = "write the reason of a failure here", f"{DEFAULT_TERMINATION_LOG} where that exists"
    parser.option("--termination-log", type=Path, otherwise=usual, metavar="FILE", help=log)
    parser.log_format()
    parser.tracing()
    return parser


def _add_model_options(parser: OptionParser) -> None:
    parser.option("--model-path", type=Path, help="the model's folder", metavar="DIR")
    parser.option("--model", help="the model's name, where --model-path is not given", metavar="NAME")
    parser.option("--version", help="the model's version, with --model", metavar="VERSION")
    parser.option("--models", help="several models or adapters, as base=NAME@V,lora=NAME@V", metavar="MODELS")
    parser.option(
        "--follow",
        type=Path,
        metavar="FILE",
        help="a file of models, as in --models; those it names later are loaded beside what serves, and swapped in",
    )
    pins = "the manifest digest that it must have; for several alias=sha256:…,…"
    parser.option("--digest", metavar="DIGEST", help=pins)
    root = "the daemon's public folder as seen here, where names are looked up"
    parser.option("--root", type=Path, default=str(DEFAULT_MOUNT), metavar="DIR", help=root)
    listen = "address to serve on; port 0: any"
    parser.option("--listen", type=parse_address, default="0.0.0.0:8080", metavar="HOST:PORT", help=listen)
    parser.option("--device", type=_device, default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    parser.option(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="type of the weights; auto: the checkpoint's",
    )
    name = "the model's name for clients"
    parser.option("--served-name", otherwise="its name in the cache", help=name, metavar="NAME")
    parser.option("--app", type=_target, help="serve package.module:factory instead", metavar="MODULE:FACTORY")


def _add_limit_options(parser: OptionParser) -> None:
    tokens = "most tokens a request may generate; past it: 400"
    parser.option("--max-tokens-limit", type=_positive, otherwise="the model's context", help=tokens, metavar="N")
    queue = "most requests that wait their turn; past it: 429"
    parser.option("--queue-limit", type=_positive, default="64", help=queue, metavar="N")
    parser.option("--batch-limit", type=_positive, default="32", help="most sequences generated at once", metavar="N")
    cache = "most memory for their keys and values, shared by all models"
    parser.option("--cache-limit", type=parse_size, otherwise="what is free", help=cache, metavar="SIZE")
    body = "largest request; past it: 413"
    parser.option("--body-limit", type=parse_size, default="4MiB", help=body, metavar="SIZE")


def _add_stop_and_probe_options(parser: OptionParser) -> None:
    parser.option(
        "--drain-linger",
        type=_seconds,
        default="10",
        help="on SIGTERM go on working so long, while clients and load balancers learn of the stop",
        metavar="S",
    )
    drain = "then finish what is in flight within so long"
    parser.option("--drain-timeout", type=_seconds, default="30", help=drain, metavar="S")
    probe = "ask an idle model for a sign of life so often"
    parser.option("--probe-interval", type=_positive_seconds, default="10", help=probe, metavar="S")
    patience = "not ready without a sign of life for so long"
    parser.option("--probe-timeout", type=_positive_seconds, default="20", help=patience, metavar="S")
    parser.option(
        "--golden",
        default="require",
        choices=tuple(GoldenMode),
        help="a version whose golden predictions differ: require: is not served; warn: is; off: they are not replayed",
    )


def _models(
    parser: OptionParser, found: argparse.Namespace, argv: Sequence[str]
) -> tuple[Path | None, tuple[ModelEntry, ...]]:
    """Return the followed file, or the models. The command line overrides the environment, which the injector sets."""
    given = {argument.partition("=")[0] for argument in argv}
    named = [option for option in _SOURCES if option in given]
    if len(named) > 1:
        parser.error(f"expected one of {', '.join(_SOURCES)}, found {' and '.join(named)}")
    values = {option: getattr(found, option.lstrip("-").replace("-", "_")) for option in _SOURCES}
    source = next((option for option in named or _SOURCES if values[option]), None)
    if source == "--follow":
        if "--digest" in given or "--served-name" in given:
            parser.error("expected --follow alone: the file gives the names, the catalog the pins")
        return found.follow, ()
    # Pins in the environment apply to the models in the environment.
    pins = found.digest if "--digest" in given or not named else None
    try:
        return None, _entries(parser, found, source, pins)
    except HoldfastError as error:
        parser.error(str(error))


def _entries(
    parser: OptionParser, found: argparse.Namespace, source: str | None, pins: str | None
) -> tuple[ModelEntry, ...]:
    if source == "--models":
        models = parse_models(found.models)
        entries = entries_of(add_pins(models, pins) if pins else models, found.root)
    elif source == "--model-path":
        entries = (ModelEntry.at(found.model_path, Digest.parse(pins) if pins else None),)
    elif source == "--model" and found.version is not None:
        link = PublicLayout(found.root).model_link(ModelRef(found.model, found.version))
        entries = (ModelEntry.at(link, Digest.parse(pins) if pins else None),)
    else:
        parser.error(
            "expected --model-path DIR (or HOLDFAST_MODEL_PATH), --model NAME with --version VERSION, "
            "--models, or --follow"
        )
    if found.served_name is None:
        return entries
    if len(entries) > 1:
        parser.error("expected --served-name for one model only: for several give aliases, as in --models base=NAME@V")
    return (replace(entries[0], name=found.served_name),)


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


def _positive_seconds(text: str) -> float:
    value = _seconds(text)
    if not value:
        raise ValueError(f"expected more than 0 seconds, found {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise ValueError(f"expected seconds, found {text!r}")
    return value
