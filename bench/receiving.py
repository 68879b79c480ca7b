"""Fetch a version over loopback from another node of a pool and from its origin: CPU seconds of the receiver.

Law: all rows are a daemon on an empty root and fetch the same files, from a node or an nginx that has them in
the page cache; only the receiver's processor time counts. With `--first-fill` two such daemons fetch together, which
no node has done before, with and without the chaining values that `publish` writes, and the processor time of both
counts. Rows take turns within a round.

Run `python -m bench.receiving --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from bench import report
from bench.daemon import CatalogEntry, Daemon, daemon, write_catalog
from bench.harness import Workplace, bench_main, in_turn, size_argument, workplace
from bench.machine import append_section, require_space
from bench.measure import cpu_seconds, failed
from bench.origins import BUCKET, Corpus, free_port, loopback_environment, nginx, random_corpus
from cached.contract.manifest import CHAINS_NAME
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verify import feed_file
from cached.peers.chain_file import encode_chains
from cached.peers.chaining import ChainHasher

_REF = ModelRef("bench", "v1")
_SPARE_BYTES = 1024**3
_TARGET = 1.05
_FIRST, _PUBLISHED = "two nodes at once", "two nodes at once, chaining values published"
_ORIGIN, _PEER, _BEFORE = "from its origin", "from another node", "from another node, before"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.receiving", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=3, help="files in the model (default 3)")
    parser.add_argument("--size", type=size_argument, default="1GiB", help="size of each (default 1GiB)")
    parser.add_argument("--before", type=Path, help="another checkout of this repository, as receiver and as node")
    parser.add_argument("--first-fill", action="store_true", help="also two nodes that fetch together first")
    parser.add_argument("--rounds", type=int, default=5, help="times that every row runs (default 5)")
    parser.add_argument("--work", type=Path, help="keep the origin's files in this folder for the next run")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(options.work) as place, ExitStack() as stack:
        total = options.files * options.size
        require_space(place.folder, total * (3 + options.first_fill + (options.before is not None)) + _SPARE_BYTES)
        print(f"origin: {options.files} files of {format_size(options.size)} in {place.origin}", flush=True)
        corpus = random_corpus(place.origin, options.files, options.size)
        url = stack.enter_context(nginx(place.origin, place.scratch / "nginx"))
        source = f"{url}/{BUCKET}/{corpus.version}/"
        rows: dict[str, Callable[[Path], float]] = {_ORIGIN: partial(_fetch, corpus, place, source, (), None)}
        for name, checkout in ((_PEER, None), (_BEFORE, options.before)):
            if name == _PEER or checkout is not None:
                port = _start_holder(stack, corpus, place, source, checkout)
                rows[name] = partial(_fetch, corpus, place, source, _peer_options(place, port), checkout)
        if options.first_fill:
            chains = _find_chains(corpus)
            for name, published in ((_FIRST, None), (_PUBLISHED, chains)):
                rows[name] = partial(_fill_first, corpus, place, source, published)
        found = _rounds(rows, corpus, place, options.rounds)
        text = _report(found)
        print(f"\n{text}")
        if options.append:
            append_section(f"Receiving from a node, {format_size(total)}", place.folder, text)
    return 0


def _peer_options(place: Workplace, holder_port: int, own_port: int | None = None) -> tuple[str, ...]:
    """Return the options of a node in the pool of the holder; `own_port` None: any."""
    key = place.scratch / "key"
    key.write_text("0" * 64)
    port = free_port() if own_port is None else own_port
    peers = f"127.0.0.1:{holder_port},127.0.0.1:{port}"
    return ("--peers", peers, "--peer-listen", f"127.0.0.1:{port}", "--peer-key-file", str(key))


def _start_holder(stack: ExitStack, corpus: Corpus, place: Workplace, source: str, checkout: Path | None) -> int:
    """Start a node that has the version; return its port for others."""
    port, name = free_port(), "holder" if checkout is None else "before"
    root = place.scratch / f"{name}-root"
    root.mkdir()
    stack.callback(shutil.rmtree, root)
    peer_options = _peer_options(place, port, port)
    running = stack.enter_context(_run(root, corpus, place, source, name, peer_options, checkout))
    running.wait_ready()
    running.pull(_REF)
    running.wait_published(_REF, corpus.manifest.digest, corpus.timeout_s)
    for each in (running.layout.blob(entry.sha256) for entry in corpus.manifest.files):
        with each.open("rb", buffering=0) as file:  # into the page cache
            while file.read(16 * 1024 * 1024):
                pass
    return port


def _fetch(
    corpus: Corpus, place: Workplace, source: str, options: Sequence[str], checkout: Path | None, root: Path
) -> float:
    """Return the CPU seconds of a daemon from the pull to the published version."""
    with _run(root, corpus, place, source, "receiver", options, checkout) as running:
        running.wait_ready()
        before_s = cpu_seconds(running.pid)
        running.pull(_REF)
        running.wait_published(_REF, corpus.manifest.digest, corpus.timeout_s)
        used_s = cpu_seconds(running.pid) - before_s
        origin_bytes = running.metric("holdfast_fetch_bytes_total", 'source="http"')
        if options and origin_bytes > 0:
            raise failed(f"{origin_bytes:.0f} bytes came from the origin", "let the machine come to rest")
        return used_s


def _find_chains(corpus: Corpus) -> bytes:
    """Return what `publish` would write beside the manifest."""
    states = {}
    for path in corpus.paths:
        hasher = ChainHasher()
        feed_file(path, hasher.update, lambda _size: None)
        states[hasher.hexdigest()] = hasher.states()
    found = encode_chains(states)
    if found is None:
        raise failed("the files have one piece each: no chaining values", "give a --size above 32MiB")
    return found


def _fill_first(corpus: Corpus, place: Workplace, source: str, chains: bytes | None, root: Path) -> float:
    """Return the CPU seconds of a node, of two that fetch the version together; the origin has `chains`, if any."""
    published = corpus.folder / CHAINS_NAME
    if chains is not None:
        published.parent.mkdir(exist_ok=True)
        published.write_bytes(chains)
    ports = free_port(), free_port()
    try:
        with ExitStack() as stack:
            nodes = []
            for number in (0, 1):
                options = _peer_options(place, ports[1 - number], ports[number])
                own = root / str(number)
                own.mkdir()
                run = _run(own, corpus, place, source, f"node{number}", options, None)
                nodes.append(stack.enter_context(run))
            for node in nodes:
                node.wait_ready()
            before_s = sum(cpu_seconds(node.pid) for node in nodes)
            for node in nodes:
                node.pull(_REF)
            for node in nodes:
                node.wait_published(_REF, corpus.manifest.digest, corpus.timeout_s)
            return (sum(cpu_seconds(node.pid) for node in nodes) - before_s) / len(nodes)
    finally:
        published.unlink(missing_ok=True)


def _run(
    root: Path, corpus: Corpus, place: Workplace, source: str, name: str, options: Sequence[str], checkout: Path | None
) -> AbstractContextManager[Daemon]:
    catalog = place.scratch / f"{name}.yaml"
    write_catalog(catalog, [CatalogEntry(_REF, source, corpus.manifest.digest)])
    return daemon(root, catalog, loopback_environment(), options, None if checkout is None else checkout.resolve())


def _rounds(
    rows: Mapping[str, Callable[[Path], float]], corpus: Corpus, place: Workplace, rounds: int
) -> dict[str, list[float]]:
    """Run each row once a round, in turns; return the CPU seconds a GB. Round 0 is a warm-up."""
    found: dict[str, list[float]] = {name: [] for name in rows}
    for round_ in range(rounds + 1):
        for name in in_turn(list(rows), round_):
            place.destination.mkdir()
            corpus.warm()
            began = time.monotonic()
            try:
                cpu_s = rows[name](place.destination) / (corpus.size / 1e9)
            finally:
                shutil.rmtree(place.destination)
                os.sync()  # else the removal's writes would slow the next row
            wall_s = time.monotonic() - began
            print(f"round {round_}: {name}: {cpu_s:.3f} CPU s/GB, {wall_s:.1f} s with start and end", flush=True)
            if round_:
                found[name].append(cpu_s)
    return found


def _report(found: Mapping[str, Sequence[float]]) -> str:
    body = [[name, *(f"{each:.3f}" for each in (median(v), min(v), max(v)))] for name, v in found.items()]
    ratios = {
        name: median(own / origin for own, origin in zip(values, found[_ORIGIN], strict=True))
        for name, values in found.items()
        if name != _ORIGIN
    }
    lines = [
        f"{name}: {ratio:.2f} x the origin's, median of the rounds (target {_TARGET})" for name, ratio in ratios.items()
    ]
    return f"{report.grid(['the files come', 'CPU s/GB, median', 'least', 'most'], body)}\n\n{report.bullets(lines)}"


if __name__ == "__main__":
    sys.exit(bench_main(main))
