"""Rolling updates of the server under load: two processes, and a balancer that learns of the change late."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.rollout import Balancer, Client, asking, eight_clients, write_app
from tests.support.serving import ServerProcess, eventually, running

APP = ("--app", "rolled_app:make", "--device", "cpu")


def roll(balancer: Balancer, old: ServerProcess, new: ServerProcess, clients: list[Client], late_s: float) -> None:
    """Replace `old` by `new`; the balancer goes on sending new connections to `old` for `late_s` after its SIGTERM."""

    def each_was_answered_anew() -> None:
        before = [client.answers for client in clients]
        eventually(
            lambda: all(client.answers > answers for client, answers in zip(clients, before, strict=True)),
            "an answer to each client",
        )

    balancer.targets = (old,)
    each_was_answered_anew()
    balancer.targets = (old, new)
    old.process.send_signal(signal.SIGTERM)
    time.sleep(late_s)
    balancer.targets = (new,)
    assert old.process.wait(120) == 0
    each_was_answered_anew()


def check(old: ServerProcess, clients: list[Client]) -> None:
    assert [failure for client in clients for failure in client.failures] == []
    log = old.log.read_text()
    assert "work goes on" in log and "refused" not in log and " 503 " not in log and "Traceback" not in log


def test_a_rolling_update_fails_no_request(tmp_path: Path) -> None:
    """Clients at several think times, half of them with kept connections and none with retries, notice nothing of a
    server that is replaced while its endpoint is withdrawn a second late; one thinks longer than the server lingers."""
    code, clients = write_app(tmp_path / "code"), eight_clients()
    arguments = (*APP, "--model-path", str(tmp_path), "--drain-linger", "3")
    with (
        running(tmp_path / "old.log", *arguments, python_path=code) as old,
        running(tmp_path / "new.log", *arguments, python_path=code) as new,
        Balancer() as balancer,
    ):
        balancer.targets = (old,)
        with asking(balancer.url, "m", clients):
            roll(balancer, old, new, clients, late_s=1)
        check(old, clients)


@pytest.mark.slow
@pytest.mark.parametrize("late_s", [1, 4, 8])
def test_a_rolling_update_of_a_model_fails_no_request(chat_llama: Path, tmp_path: Path, late_s: float) -> None:
    """The same with a model, the lingering time as it is by default, and an endpoint that is up to 8 s late."""
    clients = eight_clients()
    arguments = ("--model-path", str(chat_llama), "--served-name", "m", "--device", "cpu")
    default = {"HOLDFAST_DRAIN_LINGER": "10"}
    with (
        running(tmp_path / "old.log", *arguments, variables=default) as old,
        running(tmp_path / "new.log", *arguments, variables=default) as new,
        Balancer() as balancer,
    ):
        balancer.targets = (old,)
        with asking(balancer.url, "m", clients):
            roll(balancer, old, new, clients, late_s)
        check(old, clients)
        print(f"{late_s} s late: {sum(client.answers for client in clients)} answers, 0 lost")
