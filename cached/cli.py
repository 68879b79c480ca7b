"""The console script `holdfast`: import and run one subcommand.

Law: no import of ours at module level, so that the gate starts without loading the daemon's libraries.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

# name -> (module:function taking the arguments and returning the exit code, one line of help)
COMMANDS = {
    "daemon": ("cached.daemon.main:main", "run the node daemon: fetch, verify, publish, evict, report"),
    "gate": ("sidecar.gate.main:main", "hold until a version is present and verified, then hold its lease"),
    "inject": ("sidecar.injector.main:main", "answer the API server's reviews of pods: add the gate to the annotated"),
    "serve": ("server.app:main", "load a version and answer inference requests"),
    "publish": ("cached.publish.command:main", "hash a folder and upload it as one version"),
    "golden": ("cached.commands.golden:main", "record golden predictions from a running server"),
    "pull": ("cached.commands.pull:main", "ask the daemon of this node for a version and wait"),
    "ls": ("cached.commands.ls:main", "list the versions on this node"),
    "status": ("cached.commands.status:main", "show what the daemon of this node is doing"),
    "why": ("cached.commands.why:main", "explain why a pod or a version waits, failed or is not here"),
    "doctor": ("cached.doctor.command:main", "look at all that this node needs, and say what to do"),
    "inspect": ("cached.commands.inspect:main", "show what a version on this node, or at a source's URI, is made of"),
    "verify": ("cached.commands.verify:main", "hash versions again and compare with their manifests"),
    "gc": ("cached.commands.gc:main", "evict the versions without a want, a lease or a pin"),
    "pin": ("cached.commands.pin:main", "keep a version from eviction"),
    "unpin": ("cached.commands.pin:unpin", "let a version be evicted again"),
    "export": ("cached.archive.export:main", "write a version of this node as a tar archive"),
    "import": ("cached.archive.importing:main", "install a version from such an archive, without its source"),
    "completion": ("cached.completion:main", "print the completion of a shell, bash or zsh"),
    "demo": ("cached.demo.app:main", "run the whole path on this machine with a real model"),
}
SURVEY = "cached.survey.command:main"  # `inspect URI`: needs the daemon's libraries, which the other does not load
_AT_SOURCE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:.|--catalog\b")  # a URI, or a version of a catalog
_RUN_FOR_LONG = ("daemon", "gate", "inject")
EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code. Without `argv` take the process's arguments, and handle its streams and
    interrupts."""
    if argv is not None:
        return _dispatch(list(argv), for_itself=False)
    from cached.contract.program import output

    output.replace_streams()
    arguments = sys.argv[1:]
    name = " ".join(["holdfast", *(word for word in arguments[:1] if word in COMMANDS)])
    return output.run_guarded(name, lambda: _dispatch(arguments, for_itself=True))


def _dispatch(arguments: list[str], *, for_itself: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] in ("-V", "--version"):
        from cached.contract.release import VERSION

        sys.stdout.write(f"holdfast {VERSION}\n")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        sys.stderr.write(f"holdfast: no command {arguments[0]!r}\n\n{_usage()}")
        return EXIT_USAGE
    if arguments[0] in _RUN_FOR_LONG and for_itself:
        from cached.contract.program import process

        process.prepare_process()
    if arguments[0] == "daemon" and for_itself:
        import gc

        gc.disable()  # until all is recovered: collections would look through what is only growing
    at_source = arguments[0] == "inspect" and any(map(_AT_SOURCE.match, arguments[1:]))
    return _load(arguments[0], SURVEY if at_source else command[0])(arguments[1:])


def _load(name: str, target: str) -> Callable[[Sequence[str]], int]:
    module, _, function = target.partition(":")
    try:
        loaded: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] in ("cached", "sidecar", "server"):
            raise
        extra = {"gate": "gate", "inject": "inject", "serve": "transformers", "demo": "demo"}.get(name, "daemon")
        how = f"pip install 'holdfast[{extra}]', in a clone '.[{extra}]'"
        sys.stderr.write(f"holdfast {name}: the package {error.name} is missing; {how}\n")
        raise SystemExit(1) from error
    return loaded


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "".join(f"  {name:<{width}}  {text}\n" for name, (_, text) in COMMANDS.items())
    return f"usage: holdfast COMMAND [options]\n\n{lines}\n`holdfast COMMAND --help` shows a command's options.\n"


if __name__ == "__main__":
    sys.exit(main())
