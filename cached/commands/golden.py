"""`holdfast golden record`: record answers of a running server as the golden predictions of a version.

Law: sends HTTP requests and writes one file. An answer that differs the second time is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cached.commands.shared.common import print_json, report_errors
from cached.contract.errors import HoldfastError, Permanent, Transient, describe_read_error
from cached.contract.golden import Case, Environment, Golden, Tolerance, compare
from cached.contract.program.options import EXIT_DONE, OptionParser, whole_number
from cached.contract.status import timestamp

_ANSWER_WITHIN_S = 600.0
_EMBEDDINGS, _COMPLETIONS, _CHAT = "/v1/embeddings", "/v1/completions", "/v1/chat/completions"
_CLASSIFY, _RERANK = "/v1/classify", "/v1/rerank"
# For values of an embedding of length 1, and log probabilities, in bfloat16 on other hardware.
_TOLERANCES = {_EMBEDDINGS: Tolerance(0.001, 0.01)}
_TOLERANCE = Tolerance(0.05, 0.02)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request to record."""

    name: str
    path: str
    request: dict[str, Any]


@report_errors("golden")
def main(argv: Sequence[str]) -> int:
    """Run `holdfast golden record URL --output FILE (--input TEXT… | --requests FILE)`; return the exit code."""
    options = _parse(argv)
    server = _InferenceServer(options.url.rstrip("/"))
    model = server.get_model(options.model)
    wanted = [*_from_inputs(options.input, options.max_tokens, model), *_from_file(options.requests)]
    if not wanted:
        raise Permanent("no_inputs", "nothing to record", "give --input TEXT, once or more, or --requests FILE")
    cases = tuple(_record(server, one, model["id"], _tolerance(options, one.path)) for one in wanted)
    golden = Golden(cases, server.get_environment(), model["id"], timestamp(time.time()))
    _write(options.output, golden.encode())
    if options.json:
        print_json({"model": model["id"], "file": str(options.output), "cases": [case.name for case in cases]})
        return EXIT_DONE
    sys.stdout.write(
        f"{len(cases)} golden predictions of {model['id']} in {options.output}: "
        f"publish them with `holdfast publish DIR URI --golden {options.output}`\n"
    )
    return EXIT_DONE


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OptionParser(prog="holdfast golden", description="Golden predictions: record them from a running server.")
    parser.add_argument("action", choices=["record"], metavar="record")
    parser.add_argument("url", metavar="URL", help="the server, such as http://127.0.0.1:8080")
    parser.option("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.option("--model", metavar="NAME", help="the model's name there, where it serves several")
    parser.switch("--json", help="print one JSON object instead of text")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="TEXT",
        help="embed, classify or complete this text; may be repeated",
    )
    lines = 'a file of lines {"path": "/v1/…", "request": {…}, "name": "…"}'
    parser.option("--requests", type=Path, metavar="FILE", help=lines)
    tokens_help = "tokens to generate for each --input"
    parser.option("--max-tokens", type=whole_number(1, 4096), default="16", metavar="N", help=tokens_help)
    usual = "by the endpoint"
    absolute = "how far a number may be off, whatever its size"
    parser.option("--absolute", type=_number, otherwise=usual, metavar="NUMBER", help=absolute)
    relative = "how far a number may be off, as a share of it"
    parser.option("--relative", type=_number, otherwise=usual, metavar="SHARE", help=relative)
    return parser.parse_args(argv)


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"expected a number from 0, found {text!r}")
    return value


def _tolerance(options: argparse.Namespace, path: str) -> Tolerance:
    usual = _TOLERANCES.get(path, _TOLERANCE)
    return Tolerance(
        usual.absolute if options.absolute is None else options.absolute,
        usual.relative if options.relative is None else options.relative,
    )


class _InferenceServer:
    """A client of the inference server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get_model(self, name: str | None) -> dict[str, Any]:
        """Return the entry of the model called `name`, or of the only one; raises `Permanent` unless there is one."""
        models = self.ask("/v1/models", None).get("data")
        found = [m for m in models if name is None or m.get("id") == name] if isinstance(models, list) else []
        if len(found) != 1:
            names = ", ".join(str(model.get("id")) for model in models or ()) or "none"
            raise Permanent(
                "no_model", f"expected one model at {self._url}, found {names}", "name one of them with --model"
            )
        model: dict[str, Any] = found[0]
        return model

    def get_environment(self) -> Environment:
        """Return the server's environment; an empty one, with a warning on stderr, where it reports none."""
        try:
            return Environment.read(self.ask("/environment", None))
        except HoldfastError as error:
            sys.stderr.write(f"holdfast golden: no library versions are recorded: {error.message}\n")
            return Environment()

    def ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """POST `body`, or GET without one; return the JSON object. Raises `Permanent` or `Transient`."""
        data = None if body is None else json.dumps(body).encode()
        if not self._url.startswith(("http://", "https://")):
            raise Permanent("bad_url", f"expected http://HOST:PORT, found {self._url!r}", "name the server's address")
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})  # noqa: S310 checked
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_WITHIN_S) as answer:  # noqa: S310 checked above
                document = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode(errors="replace").strip()
            raise Permanent(
                "refused", f"{self._url}{path} answered {error.code}: {said}", "check the request and the server's log"
            ) from error
        except (OSError, ValueError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
            raise Transient(
                "no_answer", f"{self._url}{path}: {reason}", "check the address, and that the server is ready"
            ) from error
        if not isinstance(document, dict):
            raise Permanent("no_answer", f"{self._url}{path} gave no JSON object", "check the address")
        return document


def _from_inputs(texts: Sequence[str], max_tokens: int, model: dict[str, Any]) -> Iterator[_Wanted]:
    path = {"embeddings": _EMBEDDINGS, "classification": _CLASSIFY}.get(str(model.get("kind")), _COMPLETIONS)
    for number, text in enumerate(texts, 1):
        request: dict[str, Any] = {"input": text}
        if path == _COMPLETIONS:
            request = {"prompt": text, "max_tokens": max_tokens, "temperature": 0, "logprobs": 0}
        yield _Wanted(f"input {number}", path, request)


def _from_file(path: Path | None) -> Iterator[_Wanted]:
    if path is None:
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent("unreadable", describe_read_error(path, error), "name a file of JSON lines") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            yield _Wanted(str(item.get("name") or f"line {number}"), str(item["path"]), dict(item["request"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Permanent(
                "bad_request",
                f'{path}, line {number}: expected {{"path": …, "request": {{…}}}}: {error!r}',
                "write one JSON object a line",
            ) from error


def _record(server: _InferenceServer, wanted: _Wanted, model: str, tolerance: Tolerance) -> Case:
    # Without the model's name: another server may serve the version under another name.
    request = {key: value for key, value in wanted.request.items() if key != "model"}
    asked = {"model": model, **request} if wanted.path.startswith("/v1/") else request
    answer = server.ask(wanted.path, asked)
    try:
        expected = _telling(wanted.path, answer)
    except (KeyError, TypeError, AttributeError) as error:
        raise Permanent(
            "no_answer", f"{wanted.name}: {wanted.path} answers in a shape of its own: {error!r}", "check the address"
        ) from error
    case = Case(wanted.name, wanted.path, request, expected, tolerance)
    agreement = compare(case, server.ask(wanted.path, asked))
    if agreement.mismatch is not None:
        raise Permanent(
            "unsteady",
            f"{wanted.name}: asked twice, the server answers differently: {agreement.mismatch}",
            "ask without chance (temperature 0, or a seed), or widen --absolute and --relative",
        )
    return case


def _telling(path: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an answer that the model determines: not ids, times and counts."""
    if path == _EMBEDDINGS:
        return {"data": [{"embedding": item["embedding"]} for item in answer["data"]]}
    if path == _CLASSIFY:
        return {"data": [{"label": item["label"], "probs": item["probs"]} for item in answer["data"]]}
    if path == _RERANK:
        shown = ("index", "relevance_score")
        return {"results": [{name: item[name] for name in shown} for item in answer["results"]]}
    if path in (_COMPLETIONS, _CHAT):
        return {"choices": [_choice(item) for item in answer["choices"]]}
    return answer


def _choice(item: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"finish_reason": item.get("finish_reason")}
    if "text" in item:
        found["text"] = item["text"]
    if isinstance(item.get("message"), dict):
        found["message"] = {"content": item["message"].get("content")}
    logprobs = item.get("logprobs")
    if isinstance(logprobs, dict) and logprobs.get("token_logprobs"):
        found["logprobs"] = {"token_logprobs": logprobs["token_logprobs"]}
    elif isinstance(logprobs, dict) and logprobs.get("content"):
        found["logprobs"] = {"content": [{"logprob": token["logprob"]} for token in logprobs["content"]]}
    return found


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Permanent("unwritable", f"{path}: {error.strerror}", "name a file that can be written") from error
