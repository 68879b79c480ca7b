"""A log of events, as a process of its own writes it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.events import Event, one_with, read_events

_BEGINNING = """
import logging, os, sys, threading, warnings
from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.program import events, logs, process
from cached.contract.program.options import OptionParser
from cached.contract.reference import ModelRef
log = events.open_events("test", sys.argv[1:])
logs.log_to_stderr("info", ours=("cached",), events=log)
ours = logging.getLogger("cached.store")
"""


def run(program: str, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    return subprocess.run(
        [sys.executable, "-c", _BEGINNING + program, *arguments],
        capture_output=True,
        text=True,
        env={**inherited, **(environment or {})},
        check=False,
    )


def events_of(program: str) -> list[Event]:
    """What it writes with `--log-format json`, all of it."""
    done = run(program, "--log-format", "json")
    assert done.stdout == ""
    return read_events(done.stderr)


def test_a_record_is_an_event_with_what_it_is_about() -> None:
    """Model, version and digest come from the message's arguments, what an error is and its remedy too; the message
    reads as in a log of text."""
    (event,) = events_of(
        'ref, digest = ModelRef("acme/tiny", "v1"), Digest("a1" * 32)\n'
        'error = Permanent("no_space", "no room", "make some")\n'
        'log.add_constant(node="node-1", pod="")\n'
        'ours.error("%s: %s: %s", ref, digest, error, extra=logs.about(pod="team-a/p"))\n'
    )
    digest = f"sha256:{'a1' * 32}"
    assert event.pop("time")
    assert event == {
        "level": "error",
        "program": "test",
        "message": f"acme/tiny@v1: {digest}: no room (make some)",
        "logger": "cached.store",
        "model": "acme/tiny",
        "version": "v1",
        "digest": digest,
        "pod": "team-a/p",
        "node": "node-1",
        "code": "no_space",
        "remedy": "make some",
    }


def test_an_event_is_one_line_whatever_is_in_it() -> None:
    """Ends of lines, control characters, half characters and very long texts stay in one line that parses."""
    found = events_of(
        'for text in ("a\\nb\\r\\n\\x1b[1m", "\\udc80", "x" * 100000, "\\u2028é"): ours.info("%s", text)\n'
    )
    assert [event["message"][:9] for event in found] == ["a\nb\r\n\x1b[1m", "\\udc80", "x" * 9, "\u2028é"]
    assert max(len(event["message"]) for event in found) < 10000


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ('raise ValueError("main\\nends")', "the program ends: ValueError"),
        (
            'def f(): raise ValueError("in a thread")\nt = threading.Thread(target=f, name="w"); t.start(); t.join()',
            "w",
        ),
        (
            "class C:\n def __del__(self): raise ValueError('deleted')\nC()",
            "Exception ignored",
        ),
        ('try: raise ValueError("known")\nexcept ValueError: ours.exception("it failed")', "it failed"),
    ],
)
def test_a_traceback_is_part_of_one_event(program: str, words: str) -> None:
    """What ends the program or a thread, what no caller could catch, what is logged with its traceback: each is one
    event of level error."""
    event = one_with(events_of(program), words)
    assert event["level"] == "error"
    assert event["error"].startswith("Traceback") and "ValueError: " in event["error"].splitlines()[-1] + event["error"]


def test_other_peoples_lines_are_events() -> None:
    """What libraries log through a handler of their own, print, warn of, or leave without an end is an event; of a
    progress bar that overwrites itself the last state is."""
    found = events_of(
        'logging.getLogger("urllib3").warning("retrying")\n'
        'other = logging.getLogger("other"); other.propagate = False\n'
        'other.addHandler(logging.StreamHandler()); other.warning("two\\nlines")\n'
        'print("printed"); warnings.warn("old"); sys.stderr.write("10%\\r50%\\r100%\\n\\n"); print("no end", end="")\n'
    )
    assert [(event["logger"], event["message"]) for event in found if event["logger"] != "py.warnings"] == [
        ("urllib3", "retrying"),
        *(("stderr", text) for text in ("two", "lines")),
        ("stdout", "printed"),
        ("stderr", "100%"),
        ("stdout", "no end"),
    ]
    assert "UserWarning: old" in one_with(found, "UserWarning")["message"]


def test_a_library_that_writes_its_own_log_is_taken_over() -> None:
    """A taken-over library's records are events with their level, each one; with text it is left as it is."""
    program = (
        'other = logging.getLogger("other"); other.propagate = False\n'
        'handler = logging.StreamHandler(); handler.setFormatter(logging.Formatter("[other] %(message)s"))\n'
        'other.addHandler(handler); logs.take_over("other"); other.warning("two\\nlines")\n'
    )
    (event,) = events_of(program)
    assert (event["level"], event["logger"], event["message"]) == ("warning", "other", "two\nlines")
    assert run(program).stderr == "[other] two\nlines\n"


def test_lost_lines_are_told_in_an_event() -> None:
    """What a stuck reader missed is told in an event, and no line is half a line."""
    program = (
        "import os, sys\nfrom cached.contract.program import events, process\nprocess.prepare_process()\n"
        'log = events.open_events("test", ["--log-format=json"])\n'
        'for n in range(40): log.write("info", "x" * 7000)\n'
        'os.write(1, b"full")\nsys.stdin.read(1)\nlog.write("info", "the reader is back")\n'
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        assert child.stdout.read(4) == b"full"
        held = os.read(child.stderr.fileno(), 1 << 20)
        child.stdin.write(b"x")
        child.stdin.close()
        found = read_events((held + child.stderr.read()).decode())
    assert re.fullmatch(r"log lines dropped: \d+", found[-2]["message"])
    assert found[-1]["message"] == "the reader is back"


@pytest.mark.parametrize("how", [("--log-format", "json"), ("--log-format=json",), ("--log-f", "json"), ()])
def test_a_mistake_in_the_options_is_an_event(how: tuple[str, ...]) -> None:
    """Also what is wrong with the options is one event, however the format is asked for."""
    program = (
        'parser = OptionParser(prog="holdfast test"); parser.log_format(); parser.option("--size", type=int, help="")\n'
        "parser.parse_args(sys.argv[1:])\n"
    )
    done = run(program, *how, "--size", "much", environment={} if how else {"HOLDFAST_LOG_FORMAT": "json"})
    (event,) = read_events(done.stderr)
    assert (done.returncode, event["code"], event["level"]) == (2, "usage", "error")
    assert "--size" in event["message"]


def test_the_command_line_wins() -> None:
    """`--log-format text` is text, whatever the environment says."""
    done = run('ours.info("hello")', "--log-format", "text", environment={"HOLDFAST_LOG_FORMAT": "json"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO hello\n", done.stderr)


@pytest.mark.parametrize("form", ["json", "text"])
def test_repeats_are_limited(form: str) -> None:
    """The same message is written ten times in a minute; the first one of a later minute says how many were left out;
    another message is not held back by it."""
    program = (
        "import time\nnow = time.monotonic()\nlogs.time.monotonic = lambda: now\n"
        'for n in range(25): ours.warning("again")\nours.warning("another")\nnow += 61\nours.warning("again")\n'
    )
    done = run(program, "--log-format", form)
    lines = done.stderr.splitlines()
    assert len(lines) == 12
    assert "another" in lines[10]
    assert ('"repeated":15' if form == "json" else "WARNING again (and 15 more like it)") in lines[11]


def test_the_pods_name_is_the_kubelets(tmp_path: Path) -> None:
    """The pod's uid and name come from what the kubelet mounts, or from the environment; on the node's own network the
    host's name is not the pod's."""
    uid = "0b4a5f6e-1111-2222-3333-444455556666"
    mounts, hosts = tmp_path / "mountinfo", tmp_path / "hosts"
    mounts.write_text(
        "2141 2132 0:24 / /proc rw,nosuid - proc proc rw\n"
        f"2151 2132 254:0 /var/lib/kubelet/pods/{uid}/volumes/x /data rw - ext4 /dev/vda rw\n"
        f"2152 2132 254:0 /var/lib/kubelet/pods/{uid}/etc-hosts /etc/hosts rw,relatime - ext4 /dev/vda rw\n"
    )
    program = (
        "from pathlib import Path\nfrom cached.contract.program import pod\n"
        f"pod._MOUNTS, pod._HOSTS = Path({str(mounts)!r}), Path({str(hosts)!r})\n"
        "logging.getLogger('cached').info('%s %s', pod.find_uid(), pod.find_name() == os.uname().nodename)\n"
    )
    hosts.write_text("# Kubernetes-managed hosts file.\n127.0.0.1 localhost\n")
    assert run(program).stderr.endswith(f"{uid} True\n")
    hosts.write_text("# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n")
    mounts.write_text(mounts.read_text().replace("/etc/hosts", "/etc/other"))
    assert run(program).stderr.endswith("None False\n")
    given = {"HOLDFAST_POD_UID": "u-1", "HOLDFAST_POD": os.uname().nodename}
    assert run(program, environment=given).stderr.endswith("u-1 True\n")
