"""Archives: what an export writes, and what an import refuses before anything of it is visible."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cached.archive import export, importing
from cached.archive.format import EXPORT_NAME
from cached.cli import main
from cached.contract.layout import Layout
from cached.contract.manifest import MANIFEST_NAME
from cached.contract.reference import ModelRef
from tests.support.filling import manifest_of
from tests.support.mounts import mounted_tmpfs
from tests.unit.cached.commands.conftest import layout as layout
from tests.unit.cached.commands.conftest import publish

REF = ModelRef("acme/tiny", "v1")
FILES = {"config.json": b"{}", "empty.bin": b"", "sub dir/ñ+%#?.txt": b"n" * 700, "w.bin": bytes(range(256)) * 40}


def add(tar: tarfile.TarFile, path: str, data: bytes) -> None:
    header = tarfile.TarInfo(path)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def pack(
    files: Mapping[str, bytes],
    *,
    manifest: bytes | None = None,
    more: Callable[[tarfile.TarFile], None] = lambda _tar: None,
    first: tuple[str, ...] = (MANIFEST_NAME,),
) -> bytes:
    """An archive of `files` by another program, with the manifest of FILES unless another one is given."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in first:
            add(tar, name, manifest_of(FILES).canonical() if manifest is None else manifest)
        for path, data in files.items():
            add(tar, path, data)
        more(tar)
    return packed.getvalue()


@pytest.fixture
def archive(layout: Layout, tmp_path: Path) -> Path:
    """An exported version."""
    publish(layout, REF, FILES)
    path = tmp_path / "tiny.tar"
    assert export.main([str(REF), str(path), "--root", str(layout.root)]) == 0
    return path


def unpack(path: Path, folder: Path, *more: str) -> int:
    return importing.main([str(path), "--to", str(folder), *more])


def test_other_programs_read_an_archive(archive: Path) -> None:
    """tarfile finds the manifest first, the record, and then every file with its bytes, as ordinary files of root."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [MANIFEST_NAME, EXPORT_NAME, *sorted(FILES)]
        assert all(member.isreg() and (member.uid, member.gid, member.mode) == (0, 0, 0o644) for member in members)
        contents = {member.name: reader.read() for member in members if (reader := tar.extractfile(member))}
    assert contents.pop(MANIFEST_NAME) == manifest_of(FILES).canonical()
    record = json.loads(contents.pop(EXPORT_NAME))
    assert (record["model"], record["version"], record["digest"]) == ("acme/tiny", "v1", str(manifest_of(FILES).digest))
    assert contents == FILES


def test_one_version_is_one_archive(archive: Path, layout: Layout, tmp_path: Path) -> None:
    """Exports of the same version are equal, byte for byte, also through standard output."""
    again = tmp_path / "again.tar"
    assert export.main([str(REF), str(again), "--root", str(layout.root)]) == 0
    command = [sys.executable, "-m", "cached.cli", "export", str(REF), "-", "--root", str(layout.root)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert archive.read_bytes() == again.read_bytes() == done.stdout
    assert str(manifest_of(FILES).digest) in done.stderr.decode()


def test_an_archive_comes_back_as_it_was(archive: Path, tmp_path: Path) -> None:
    """Unpacked, it is a published version: its manifest and its files, and nothing else."""
    assert unpack(archive, tmp_path / "out") == 0
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found.pop(MANIFEST_NAME) == manifest_of(FILES).canonical()
    assert found == FILES


def test_an_unpacked_archive_can_be_published_again(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was unpacked goes to any destination of `publish`, under the digest that it had."""
    assert unpack(archive, tmp_path / "out") == 0
    capsys.readouterr()
    assert main(["publish", "--keep-all", "--force", str(tmp_path / "out"), str(tmp_path / "there")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(manifest_of(FILES).digest)


def test_an_export_hashes_what_it_writes(
    archive: Path, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte that changed on the node ends the export: the earlier file stays as it was, and no part of a new one."""
    before = archive.read_bytes()
    rotten = layout.public.model_link(REF) / "w.bin"
    data = bytearray(rotten.read_bytes())
    data[77] ^= 1
    rotten.write_bytes(data)
    assert export.main([str(REF), str(archive), "--root", str(layout.root)]) == 1
    assert "w.bin: sha256: expected" in (said := capsys.readouterr().err)
    assert f"holdfast verify {REF}" in said
    assert archive.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["root", "tiny.tar"]


@pytest.mark.parametrize("path", ["w.bin", "empty.bin", ".holdfast/manifest.json"])
def test_an_export_waits_for_no_pipe(archive: Path, layout: Layout, path: str) -> None:
    """A pipe in the place of a file or of the manifest is told as damage, and the earlier archive stays."""
    before = archive.read_bytes()
    place = layout.public.model_link(REF) / path
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    command = [sys.executable, "-m", "cached.cli", "export", str(REF), str(archive), "--root", str(layout.root)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, text=True)
    assert done.returncode == 1 and path in done.stderr and "no plain file" in done.stderr
    assert archive.read_bytes() == before


def test_an_export_through_a_link_leaves_the_link(archive: Path, layout: Layout, tmp_path: Path) -> None:
    """A symlink in the place of the archive stays, also one to nothing yet; what it leads to is the archive."""
    (tmp_path / "there").mkdir()
    link = tmp_path / "latest.tar"
    link.symlink_to("there/real.tar")
    for _ in range(2):
        assert export.main([str(REF), str(link), "--root", str(layout.root)]) == 0
        assert link.is_symlink() and (tmp_path / "there" / "real.tar").read_bytes() == archive.read_bytes()
    assert os.listdir(tmp_path / "there") == ["real.tar"]


def test_an_export_goes_into_a_pipe_by_its_name(archive: Path, layout: Layout) -> None:
    """`/dev/stdout` and `/dev/fd/N` are written as they are, and stay."""
    command = [sys.executable, "-m", "cached.cli", "export", str(REF), "/dev/fd/2", "--root", str(layout.root)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert done.stderr.startswith(archive.read_bytes()[:1024])


@pytest.mark.parametrize("target", ["no/such/folder.tar", "."])
def test_an_export_that_cannot_write_says_where(
    archive: Path, layout: Layout, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing folder, or a folder in place of the file, is named with a remedy."""
    assert archive.exists()
    assert export.main([str(REF), str(tmp_path / target), "--root", str(layout.root)]) == 1
    assert "what to do" in capsys.readouterr().err


def link(tar: tarfile.TarFile) -> None:
    header = tarfile.TarInfo("w.bin")
    header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(header)


def sparse(tar: tarfile.TarFile) -> None:
    header = tarfile.TarInfo("w.bin")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, 0
    tar.addfile(header)


def huge(tar: tarfile.TarFile) -> None:
    header = tarfile.TarInfo("w.bin")
    header.size = 1 << 50
    tar.addfile(header)


WITHOUT_WEIGHTS = {path: data for path, data in FILES.items() if path != "w.bin"}
WRONG = {
    "a byte changed": (pack({**FILES, "w.bin": b"x" + FILES["w.bin"][1:]}), "w.bin: sha256: expected"),
    "a file is missing": (pack(WITHOUT_WEIGHTS), "lacks 'w.bin'"),
    "a file twice": (pack(FILES, more=lambda tar: add(tar, "config.json", b"{}")), "'config.json' twice"),
    "another size": (pack({**FILES, "w.bin": b"short"}), "'w.bin' has 5 bytes, its manifest says 10240"),
    "a huge entry": (pack(WITHOUT_WEIGHTS, more=huge), "'w.bin' has 1125899906842624 bytes"),
    "a sparse entry": (pack(WITHOUT_WEIGHTS, more=sparse), "'w.bin', found a sparse file"),
    "a link": (pack(WITHOUT_WEIGHTS, more=link), "expected the bytes of 'w.bin', found a link"),
    "a path that climbs": (pack({"../evil": b"x", **FILES}), "'../evil', which its manifest does not list"),
    "an absolute path": (pack({"/evil": b"x", **FILES}), "'/evil', which its manifest does not list"),
    "an unlisted file": (pack({**FILES, "more.bin": b"x"}), "'more.bin', which its manifest does not list"),
    "a manifest later": (pack(FILES, first=("config.json", MANIFEST_NAME)), "as its first file, found 'config.json'"),
    "a manifest twice": (pack(FILES, first=(MANIFEST_NAME,) * 2), "'holdfast.json', which its manifest does not list"),
    "no manifest": (pack(FILES, first=()), "as its first file, found 'config.json'"),
    "a bad manifest": (pack(FILES, manifest=b"{}"), "its `holdfast.json`: expected schema"),
    "a manifest with a climbing path": (
        pack({}, manifest=manifest_of(FILES).canonical().replace(b"config.json", b"../config.j")),
        "has the segment '..'",
    ),
    "rubbish after its end": (pack(FILES) + b"rubbish", "something follows"),
    "two archives": (pack(FILES) + pack(FILES), "something follows"),
    "cut in a file": (pack(FILES)[:-9000], "it ends early, after"),
    "cut before its manifest": (pack(FILES)[:512], "it ends early, after 512 bytes"),
    "cut in its manifest": (pack(FILES)[:600], "it ends early, after 600 bytes"),
    "cut in its record": (pack({".holdfast/export.json": b"{}"})[:1537], "it ends early, after 1537 bytes"),
    "cut in a header": (pack(FILES)[:1300], "ends within the header"),
    "no end": (pack(FILES).rstrip(b"\0").ljust(-(-len(pack(FILES).rstrip(b"\0")) // 512) * 512, b"\0"), "ends early"),
    "nothing": (b"", "it is empty"),
    "gzip": (b"\x1f\x8b" + bytes(600), "found one in gzip"),
    "no archive": (b"<html>" + bytes(600), "expected a tar archive: found no header"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_an_archive_is_said_and_nothing_is_unpacked(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive that is not, whole, what its manifest says is refused by name, and leaves no folder."""
    data, reason = WRONG[what]
    (tmp_path / "bad.tar").write_bytes(data)
    assert unpack(tmp_path / "bad.tar", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert reason in said
    assert "what to do" in said
    assert os.listdir(tmp_path) == ["bad.tar"]


def test_an_import_that_is_handed_nothing_tells_of_kubectls_switch(tmp_path: Path) -> None:
    """In a pod, standard input is empty where `kubectl exec` was not told to hand it on: the refusal says so."""
    command = [sys.executable, "-m", "cached.cli", "import", "-", "--to", str(tmp_path / "out")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "standard input: it is empty" in done.stderr
    assert "`kubectl exec` hands standard input on with -i only" in done.stderr


def test_an_archive_of_another_program_is_taken(tmp_path: Path) -> None:
    """Folders, `./` and owners do not matter: a published folder is packed by tar."""
    folder = tmp_path / "published"
    for path, data in {**FILES, MANIFEST_NAME: manifest_of(FILES).canonical()}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    names = [f"./{MANIFEST_NAME}", *(f"./{name}" for name in os.listdir(folder) if name != MANIFEST_NAME)]
    subprocess.run(["tar", "-C", folder, "-cf", tmp_path / "x.tar", *names], check=True)
    assert unpack(tmp_path / "x.tar", tmp_path / "out") == 0
    assert (tmp_path / "out" / "w.bin").read_bytes() == FILES["w.bin"]


def test_a_folder_that_has_something_is_left_alone(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unpacking replaces no folder that has files."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert unpack(archive, tmp_path / "out") == 1
    assert "expected no folder" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_a_link_to_an_empty_folder_is_unpacked_into(archive: Path, tmp_path: Path) -> None:
    """`--to LINK` fills the folder that the link leads to, and the link stays."""
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there")
    assert unpack(archive, tmp_path / "out") == 0
    assert (tmp_path / "out").is_symlink() and (tmp_path / "there" / "w.bin").read_bytes() == FILES["w.bin"]


def test_the_top_of_a_volume_is_refused_before_a_byte(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No rename can put a folder over a mounted volume: that is told at once, with a folder to name in its place."""
    with mounted_tmpfs(tmp_path / "volume") as volume:
        assert unpack(archive, volume) == 1
        assert f"--to {volume}/" in (said := capsys.readouterr().err) and "mounted volume" in said
        assert unpack(archive, volume / "tiny") == 0
        assert sorted(os.listdir(volume)) == ["tiny"]


def test_another_digest_than_asked_for_is_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--digest` is compared before a file is read."""
    assert unpack(archive, tmp_path / "out", "--digest", f"sha256:{'0' * 64}") == 1
    assert "(--digest)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_many_and_long_pax_headers_stay_out_of_memory(tmp_path: Path) -> None:
    """Records that nothing reads are dropped: headers of a megabyte each do not add up in memory."""
    value = b"x" * 1_000_000
    length = len("1000014 k0000=") + len(value) + len("\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(40):
            data = f"{length} k{number:04}=".encode() + value + b"\n"
            header = tarfile.TarInfo("pax")
            header.type, header.size = tarfile.XHDTYPE, len(data)
            tar.addfile(header, io.BytesIO(data))
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        add(tar, MANIFEST_NAME, manifest_of(FILES).canonical())
    (tmp_path / "pax.tar").write_bytes(packed.getvalue())
    script = (
        "import resource, sys\n"
        "from cached.archive.importing import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "main(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "pax.tar"), "--to", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "lacks 'config.json'" in done.stderr
    assert int(done.stdout) < 20_000  # KiB
