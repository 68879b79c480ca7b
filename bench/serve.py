"""Serve one model with Holdfast and with `transformers serve`, in turns: start to first token, then tokens a second.

Law: the same folder, device and requests for every server; one server runs at a time, all in each round. The model's
files are in the page cache before each start. The clients run in this process, over loopback.

Run `python -m bench.serve --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

import aiohttp

from bench import llama, pages, report
from bench.checkpoints import given
from bench.harness import Workplace, bench_main, in_turn, matches, workplace
from bench.machine import append_section, describe
from bench.measure import failed
from bench.servers import OURS, SERVERS, Running, Server, first_token, running, text_of
from cached.contract.errors import HoldfastError
from cached.contract.program.units import format_size

_TIMEOUT_S = 600
_PROMPT_WORDS = 900  # words of the synthetic model; every shape has at least these
_TARGET_S = 10.0
_TARGET_BYTES = 14 * 10**9


@dataclass(frozen=True, slots=True)
class Load:
    """The clients' requests to servers on `device`: `streams` at once, of `prompt` words, for `tokens` each.

    `threads`: CPU threads of a server for one computation; None: its own choice.
    """

    device: str
    threads: int | None
    streams: tuple[int, ...]
    prompt: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Start:
    """One start, in seconds from the process's start; `stages` as the server names them."""

    row: str
    round: int
    listening_s: float
    first_token_s: float
    cpu_s: float
    stages: dict[str, float]


@dataclass(frozen=True, slots=True)
class Throughput:
    """`tokens` in `wall_s` seconds with `streams` requests at once, and each request's seconds to its first token."""

    row: str
    round: int
    streams: int
    tokens: int
    wall_s: float
    cpu_s: float
    first_s: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.wall_s


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    options = _parser().parse_args(argv)
    with workplace(options.work) as place:
        folder = options.model or _synthetic(options, place)
        checkpoint = given(folder)
        streams = tuple(int(number) for number in options.streams.split(","))
        load = Load(options.device, options.threads, streams, options.prompt_words, options.tokens)
        starts, found, notes = _rounds(_servers(options.only), folder.resolve(), load, options, place)
        text = _report(starts, found, notes, checkpoint.size)
        head = (
            f"{checkpoint.title}, {format_size(checkpoint.size)}, on {options.device}; prompts of {load.prompt} words, "
        )
        head += f"{load.tokens} tokens each, greedy"
        if load.threads is not None:
            head += f", OMP_NUM_THREADS={load.threads}"
        print(f"\n{head}\n\n{text}")
        if options.json is not None:
            kept = {"machine": describe(place.folder), "starts": starts, "throughput": found}
            options.json.write_text(json.dumps(kept, indent=1, default=asdict) + "\n")
        if options.append:
            append_section(f"Serve, {checkpoint.title}", place.folder, f"{head}\n\n{text}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a model's folder (default: a random Llama, made here)")
    parser.add_argument(
        "--shape", choices=list(llama.SHAPES), default="135m", help="of the random Llama (default 135m)"
    )
    parser.add_argument("--dtype", default="float32", help="of the random Llama (default float32)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default cpu)")
    parser.add_argument("--threads", type=int, help="for one computation on the processor (default: each server's own)")
    parser.add_argument("--streams", default="1,8,32", help="requests at once, one after another (default 1,8,32)")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer (default 32)")
    parser.add_argument("--prompt-words", type=int, default=32, help="of each prompt (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every server runs (default 3)")
    parser.add_argument("--only", default="", help="only rows with one of these comma-separated words in their name")
    parser.add_argument(
        "--budget-s", type=float, default=1500, help="begin nothing after so many seconds (default 1500)"
    )
    parser.add_argument("--work", type=Path, help="keep the random Llama in this folder for the next run")
    parser.add_argument("--json", type=Path, help="also write every sample to this file")
    parser.add_argument("--append", action="store_true", help="append the tables to docs/benchmarks.md")
    return parser


def _synthetic(options: argparse.Namespace, place: Workplace) -> Path:
    folder = place.origin / f"llama-{options.shape}-{options.dtype}"
    return llama.write(folder, llama.SHAPES[options.shape], options.dtype, options.device)


def _servers(only: str) -> list[Server]:
    found = []
    for server in SERVERS:
        if not matches(only, server.row):
            continue
        if (reason := server.missing()) is not None:
            print(f"skipped, {server.row}: {reason}", flush=True)
            continue
        found.append(server)
    return found


def _rounds(
    servers: list[Server], folder: Path, load: Load, options: argparse.Namespace, place: Workplace
) -> tuple[list[Start], list[Throughput], list[str]]:
    starts: list[Start] = []
    found: list[Throughput] = []
    notes: list[str] = []
    deadline, slowest = time.monotonic() + options.budget_s, 0.0
    for round_ in range(1, options.rounds + 1):
        for server in in_turn(servers, round_ - 1):
            began = time.monotonic()
            if began + slowest > deadline:
                return starts, found, [*notes, f"out of time in round {round_}"]
            try:
                start, rates = _one(server, folder, load, round_, place)
            except HoldfastError as error:
                notes.append(f"{server.row} failed: {error.message.splitlines()[-1]}")
                print(f"failed: {error.message}", flush=True)
                servers.remove(server)
                continue
            starts.append(start)
            found += rates
            slowest = max(slowest, time.monotonic() - began)
    return starts, found, notes


def _one(server: Server, folder: Path, load: Load, round_: int, place: Workplace) -> tuple[Start, list[Throughput]]:
    log = place.scratch / "server.log"
    pages.warm(given(folder).files)
    with running(server, folder, load.device, load.threads, log) as up:
        first_s = first_token(up, log)
        start = Start(server.row, round_, up.listening_s, first_s, up.cpu_s(), up.stages())
        print(
            f"round {round_}: {server.row}: listening {up.listening_s:.2f} s, first token {first_s:.2f} s", flush=True
        )
        rates = []
        asyncio.run(_clients(up, load, 1, 1, round_))  # the one-time work of a first longer request
        for streams in load.streams:
            rates.append(asyncio.run(_clients(up, load, streams, 2 * streams, round_)))
            print(f"round {round_}: {server.row}: {streams} streams: {rates[-1].rate:.1f} tokens/s", flush=True)
    return start, rates


async def _clients(up: Running, load: Load, streams: int, requests: int, round_: int) -> Throughput:
    """Send `requests` requests, `streams` at a time, each with its own prompt, the same for every server."""
    chosen = random.Random(streams)
    words = llama.words(_PROMPT_WORDS)
    waiting = [" ".join(chosen.choices(words, k=load.prompt)) for _ in range(requests)]
    tokens: list[int] = []
    first: list[float] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting:
            count, seconds = await _ask(session, up, waiting.pop(), load.tokens)
            tokens.append(count)
            first.append(seconds)

    cpu_s, began = up.cpu_s(), time.monotonic()
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(streams):
                    group.create_task(client(session))
        except ExceptionGroup as errors:
            if (found := errors.subgroup((aiohttp.ClientError, TimeoutError))) is None:
                raise
            raise failed(f"{up.server.row} with {streams} streams: {found.exceptions[0]!r}") from errors
    wall_s = time.monotonic() - began
    return Throughput(up.server.row, round_, streams, sum(tokens), wall_s, up.cpu_s() - cpu_s, tuple(first))


async def _ask(session: aiohttp.ClientSession, up: Running, prompt: str, tokens: int) -> tuple[int, float]:
    """Return the number of tokens and the seconds to the first. Each token is one word, so words are counted: servers
    differ in the usage they report in a stream."""
    body = {"model": up.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    began, first, text = time.monotonic(), 0.0, []
    async with session.post(f"{up.url}/v1/completions", json=body) as answer:
        if answer.status != 200:
            raise failed(f"{up.server.row} answered {answer.status}: {(await answer.text())[:300]}")
        async for line in answer.content:
            if found := text_of(line):
                first = first or time.monotonic() - began
                text.append(found)
    return len("".join(text).split()), first


def _report(starts: Sequence[Start], found: Sequence[Throughput], notes: Sequence[str], size: int) -> str:
    rows = list(dict.fromkeys(start.row for start in starts))
    parts = [_start_table(starts, rows), _stage_table(starts), _rate_table(found)]
    targets: list[object] = []
    own = [start.first_token_s for start in starts if start.row == OURS]
    if own and size >= _TARGET_BYTES:
        targets.append(report.Target("process start to first token", median(own), _TARGET_S, False, " s"))
    return "\n\n".join(part for part in [*parts, report.bullets([*targets, *notes])] if part)


def _start_table(starts: Sequence[Start], rows: Sequence[str]) -> str:
    body = []
    for row in rows:
        own = [start for start in starts if start.row == row]
        times = [median(getattr(s, name) for s in own) for name in ("listening_s", "first_token_s", "cpu_s")]
        paired = _paired(
            {s.round: s.first_token_s for s in own}, {s.round: s.first_token_s for s in starts if s.row == OURS}
        )
        body.append([row, *(f"{value:.2f}" for value in times), paired])
    return report.grid(["start", "listens after s", "first token after s", "CPU s", f"x {OURS}'s time"], body)


def _stage_table(starts: Sequence[Start]) -> str:
    own = [start.stages for start in starts if start.row == OURS]
    if not own:
        return ""
    names = list(dict.fromkeys(name for stages in own for name in stages))
    body = [[name, f"{median(stages.get(name, 0.0) for stages in own):.3f}"] for name in names]
    return report.grid([f"{OURS}'s stage", "s"], body)


def _rate_table(found: Sequence[Throughput]) -> str:
    body = []
    for streams in dict.fromkeys(sample.streams for sample in found):
        alike = [sample for sample in found if sample.streams == streams]
        ours = {sample.round: sample.rate for sample in alike if sample.row == OURS}
        for row in dict.fromkeys(sample.row for sample in alike):
            own = [sample for sample in alike if sample.row == row]
            first = sorted(seconds * 1000 for sample in own for seconds in sample.first_s)
            cpu = median(sample.cpu_s / max(1, sample.tokens) for sample in own)
            body.append(
                [
                    f"{row}, {streams}",
                    f"{median(sample.rate for sample in own):.1f}",
                    _paired({sample.round: sample.rate for sample in own}, ours),
                    f"{median(first):.0f}",
                    f"{quantiles(first, n=100, method='inclusive')[98] if len(first) > 1 else first[0]:.0f}",
                    f"{cpu * 1000:.1f}",
                ]
            )
    head = ["server, streams", "tokens/s", f"x {OURS}", "first token p50, ms", "p99, ms", "CPU ms/token"]
    return report.grid(head, body) if body else ""


def _paired(own: dict[int, float], reference: dict[int, float]) -> str:
    """Format the median ratio of the rounds' figures."""
    ratios = [value / reference[round_] for round_, value in own.items() if reference.get(round_)]
    return f"{median(ratios):.2f}" if ratios else "-"


if __name__ == "__main__":
    sys.exit(bench_main(main))
