"""The Dockerfile and what it is given."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.manifests import REPOSITORY

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def stages() -> dict[str, list[str]]:
    """Each stage's instructions, continued lines joined."""
    found: dict[str, list[str]] = {}
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    for line in filter(None, map(str.strip, text.splitlines())):
        if match := re.fullmatch(r"FROM \S+ AS (\S+)", line):
            found[match[1]] = [line]
        elif found:
            found[list(found)[-1]].append(line)
    return found


def test_the_targets_exist() -> None:
    """There are the four images, and what they are made from."""
    assert {"gate", "daemon", "server", "debug"} <= set(stages())


def test_the_base_is_pinned_and_an_argument() -> None:
    """By default the base is one digest; with an argument it is anything, from no registry at all."""
    assert re.search(r"(?m)^ARG BASE_IMAGE=\S+@sha256:[0-9a-f]{64}$", DOCKERFILE)
    bases = {line.split()[1] for stage in stages().values() for line in stage if line.startswith("FROM ")}
    assert bases <= {"${BASE_IMAGE}", *stages()}


def test_images_run_as_nobody() -> None:
    """Each image ends as the user 65532, by number, so that runAsNonRoot can tell."""
    for name in ("gate", "daemon", "server", "debug"):
        assert [line for line in stages()[name] if line.startswith("USER ")][-1] == "USER 65532:65532"


def test_nothing_is_cached_in_an_image() -> None:
    """Every pip runs without a cache, and what apt fetched is removed in the layer it came in."""
    for stage in stages().values():
        for line in stage:
            assert ("pip" not in line.split()) or "--no-cache-dir" in line
            assert "apt-get update" not in line or "rm -rf /var/lib/apt/lists/*" in line


def test_code_comes_after_dependencies() -> None:
    """No layer with dependencies sees the code: a change of code rebuilds none of them."""
    for name, stage in stages().items():
        if name.endswith("-dependencies"):
            copied = [line for line in stage if line.startswith("COPY ")]
            assert copied == [
                f"COPY --from=requirements /requirements/constraints.txt /requirements/"
                f"{name.removesuffix('-dependencies')}.txt /requirements/"
            ]
    assert "COPY . ." not in stages()["requirements"]


def test_images_have_the_bytecode_of_all_they_import() -> None:
    """Nothing can be written where an image runs: the standard library, each dependency and the product are compiled in
    the layer that brings them, as the Dockerfile's own program does it."""
    (base,) = [line for line in stages()["base"] if "COMPILE" in line and line.startswith("RUN ")]
    assert 'get_path("stdlib")' in base
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = " ".join(name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"])
    for name in ("gate", "daemon", "server"):
        (dependencies,) = [line for line in stages()[f"{name}-dependencies"] if " install " in line]
        assert "--no-compile" in dependencies
        assert dependencies.endswith('&& python3 -c "$COMPILE" /opt/holdfast/lib')
        (product,) = [line for line in stages()[name] if " install " in line]
        assert "--no-compile" in product
        assert f'for package in {packages}; do python3 -c "$COMPILE" ' in product
        assert product.endswith("/site-packages/$package; done")
    for name in ("base", "gate", "gate-dependencies", "daemon", "daemon-dependencies", "server", "server-dependencies"):
        assert "ARG COMPILE" in stages()[name]  # else it is empty there


def test_bytecode_holds_whatever_happens_to_times(tmp_path: Path) -> None:
    """The Dockerfile's program compiles all of a folder but what fits the pattern; a file for another Python stops
    nothing; and what it made is used although the source has another time, as a builder may give it."""
    found = re.search(r'(?ms)^ARG COMPILE="(.*?)"$', DOCKERFILE)
    assert found is not None
    for name, source in (("one", "value = 1\n"), ("tests/two", "value = 2\n"), ("other", "print 3\n")):
        path = tmp_path / "package" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    program = found[1].replace("\\\n", "")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), "/tests/"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},  # as the images have it
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "other.py" in done.stdout
    made = sorted(path.name.partition(".")[0] for path in tmp_path.rglob("*.pyc"))
    assert made == ["one"]
    (tmp_path / "package" / "one.py").write_text("value = 'compiled again'\n")
    os.utime(tmp_path / "package" / "one.py", (0, 0))
    shown = subprocess.run(
        [sys.executable, "-c", "from package import one; print(one.value)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert shown.stdout == "1\n"


def test_docker_alone_checks_health() -> None:
    """Images that serve have a health check for docker; the gate ends or is probed by the kubelet."""
    for name, port in (("daemon", 9400), ("server", 8080)):
        (check,) = [line for line in stages()[name] if line.startswith("HEALTHCHECK ")]
        assert f"http://127.0.0.1:{port}/readyz" in check


def test_images_say_what_they_are() -> None:
    """Each image carries its title, version, revision, source and licence."""
    for name in ("gate", "daemon", "server"):
        (labels,) = [line for line in stages()[name] if line.startswith("LABEL ")]
        for label in ("title", "description", "version", "revision", "source", "licenses"):
            assert f"org.opencontainers.image.{label}=" in labels


def test_the_build_gets_what_it_needs_and_no_more() -> None:
    """.dockerignore lets through the packages and what pyproject.toml names, so that nothing else rebuilds a layer."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = {f"!{name.rstrip('*')}" for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {"!pyproject.toml", "!constraints.txt", f"!{project['project']['readme']}"}
    files |= {f"!{name}" for name in project["project"]["license-files"]}
    assert "*" in lines
    assert {line for line in lines if line.startswith("!")} == packages | files
