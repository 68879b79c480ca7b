"""Filters: what a glob selects, and what is clutter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import HoldfastError, Permanent
from cached.core.filters import choose_files, may_select_below, nothing_selected, select_paths
from cached.core.listing import Listing, RemoteFile, Unlisted

FILES = ("config.json", "model.safetensors", "onnx/model.onnx", "onnx/config.json", "README.md", "tokenizer.model")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], FILES),
        (["*.json"], [], ("config.json", "onnx/config.json")),
        (["onnx/"], [], ("onnx/model.onnx", "onnx/config.json")),
        (["onnx/*"], ["*.onnx"], ("onnx/config.json",)),
        ([], ["*"], ()),
        (["CONFIG.JSON"], [], ()),
        (["config.jso?", "[Rr]eadme.md", "[Rr]EADME.md"], [], ("config.json", "README.md")),
        (["token"], [], ()),
        (["*.json"], ["onnx/"], ("config.json",)),
    ],
)
def test_select(include: list[str], exclude: list[str], expected: tuple[str, ...]) -> None:
    """A glob matches the whole path, case-sensitive, `*` across folders, a final `/` everything below; exclude wins."""
    assert select_paths(FILES, include, exclude) == expected


@given(st.lists(st.text("ab/.*", max_size=6)), st.lists(st.text("ab/.*[!]?", max_size=5)), st.lists(st.text("ab*/")))
def test_select_only_leaves_out(paths: list[str], include: list[str], exclude: list[str]) -> None:
    """What is selected was there, in the same order, and selecting again changes nothing."""
    selected = select_paths(paths, include, exclude)
    rest = iter(paths)
    assert all(path in rest for path in selected)
    assert select_paths(selected, include, exclude) == selected


def kept_of(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The paths that the built-in filters keep, of a source without a manifest."""
    return tuple(names(choose_files(listing(*paths), "/m", (), ())))


def test_clutter_goes() -> None:
    """What Git, caches, desktops and fsck leave behind goes; dot-files that mean something stay."""
    clutter = (".git/config", "sub/.git/HEAD", ".gitattributes", "sub/.gitignore", ".DS_Store", "a/Thumbs.db")
    cache = ("lost+found/#123", ".cache/huggingface/download/model.safetensors.lock", "a/.cache/x")
    kept = ("a/lost+found/x", ".env", "cache/x", "git/config", "notes.lock", ".gitattributes.json")
    assert kept_of((*clutter, *kept, *cache)) == kept


def test_weights_in_other_formats_go_where_safetensors_have_them() -> None:
    """The same weights for other frameworks go, shards and indexes included; everything else stays."""
    kept = ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    again = (
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "rust_model.ot",
        "original/consolidated.00.pth",
        "onnx/model.onnx",
    )
    assert kept_of((*again, *kept)) == kept


@pytest.mark.parametrize(
    "files",
    [
        ("config.json", "original/params.json"),
        ("pytorch_model.bin", "2_Dense/model.safetensors"),
        ("pytorch_model.bin", "adapter_model.safetensors"),
        ("2_Dense/pytorch_model.bin", "model.safetensors"),
        ("training_args.bin", "notes.txt"),
    ],
)
def test_the_only_copy_stays(files: tuple[str, ...]) -> None:
    """Weights that no safetensors of the same folder have again are never left out."""
    assert kept_of(files) == files


def test_nothing_selected_says_what_was_there() -> None:
    """The error of filters that leave nothing names the globs, the place and what was found."""
    error = nothing_selected("s3://b/m/", FILES, ["*.gguf"], ["x"])
    assert error.code == "nothing_selected"
    for part in ("s3://b/m/", "*.gguf", "'x'", str(len(FILES)), "config.json"):
        assert part in error.message
    assert "include" in error.remedy


# Judged when chosen

WEIGHTS = ("model.safetensors", "config.json")
AWKWARD = {
    "backslash": "assets\\plot.png",
    "newline": "a\nb.txt",
    "decomposed": "samples/cafe\u0301.png",
    "not UTF-8": "bad\udcff.png",
    "dots": "../up.png",
    "empty segment": "a//b.png",
    "absolute": "/etc/x.png",
    "too long": "x" * 300,
    "reserved": ".HOLDFAST/lease",
    "a folder's name": "config.json/x.md",
    "another case": "Config.JSON",
}


def listing(*paths: str, unlisted: tuple[Unlisted, ...] = ()) -> Listing:
    return Listing(tuple(RemoteFile(path, path, 1, "v") for path in paths), "here", unlisted=unlisted)


def names(found: tuple[RemoteFile, ...]) -> list[str]:
    return [file.path for file in found]


def refusal(found: Listing, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        choose_files(found, "s3://b/m/", include, exclude)
    return caught.value


@pytest.mark.parametrize("path", AWKWARD.values(), ids=AWKWARD)
def test_a_name_is_judged_only_where_it_is_chosen(path: str) -> None:
    """A name that no manifest may carry fails the version that would hold it, and no version that leaves it out."""
    found = listing(*WEIGHTS, path)
    error = refusal(found)
    assert (error.code, "s3://b/m/" in error.message) == ("bad_name", True)
    assert names(choose_files(found, "s3://b/m/", WEIGHTS, ())) == list(WEIGHTS)
    assert names(choose_files(found, "s3://b/m/", (), ("*.png", "*.txt", "*.md", "x*", "*/lease", "C*"))) == list(
        WEIGHTS
    )


def test_the_same_path_twice_is_judged_only_where_it_is_chosen() -> None:
    """A listing that names a path twice is refused where the path is chosen."""
    found = listing(*WEIGHTS, "README.md", "README.md")
    assert refusal(found).code == "bad_name"
    assert names(choose_files(found, "s3://b/m/", (), ("*.md",))) == list(WEIGHTS)


def test_a_problem_is_raised_only_where_its_file_is_chosen() -> None:
    """What cannot be fetched fails the version that would hold it, with its own error, and no other."""
    problem = Permanent("bad_file", "a dangling link", "mend it")
    found = Listing((*listing(*WEIGHTS).files, RemoteFile("old.bin", "", None, problem=problem)), "here")
    assert refusal(found) is problem
    assert names(choose_files(found, "s3://b/m/", WEIGHTS, ())) == list(WEIGHTS)
    assert names(choose_files(found, "s3://b/m/", (), ("old*",))) == list(WEIGHTS)


def test_what_may_be_a_folder_is_not_passed_over_where_a_pattern_goes_into_it() -> None:
    """A dangling link that a pattern names as a folder fails the version: what would lie there is not known."""
    problem = Permanent("bad_file", "a dangling link", "mend it")
    found = Listing((*listing(*WEIGHTS).files, RemoteFile("onnx", "", None, problem=problem)), "here")
    assert refusal(found, ("*.json", "onnx/")) is problem
    assert refusal(found, ("*.json", "onnx/*.onnx")) is problem


def test_an_unlisted_folder_fails_what_could_lie_in_it() -> None:
    """A folder that cannot be listed fails a version that could have a file below it, and no other."""
    problem = Permanent("forbidden", "may not be read", "let it be read")
    found = listing(*WEIGHTS, unlisted=(Unlisted("private/", problem),))
    for include in ((), ("*.safetensors",), ("config.json", "private/a/b.json")):
        error = refusal(found, include)
        assert error.__cause__ is problem
        assert (error.code, 'exclude: ["private/"]' in error.remedy) == ("forbidden", True)
    assert names(choose_files(found, "s3://b/m/", WEIGHTS, ())) == list(WEIGHTS)
    assert names(choose_files(found, "s3://b/m/", ("*.safetensors", "*.json"), ("private/",))) == list(WEIGHTS)
    assert names(choose_files(found, "s3://b/m/", (), ("priv*",))) == list(WEIGHTS)


@pytest.mark.parametrize("clutter", ["lost+found/", ".git/", "a/.git/", ".cache/", "original/"])
def test_an_unlisted_folder_that_is_clutter_fails_nothing(clutter: str) -> None:
    """A folder that the built-in filter leaves out need not be readable."""
    problem = Permanent("forbidden", "may not be read", "let it be read")
    found = listing(*WEIGHTS, unlisted=(Unlisted(clutter, problem),))
    assert names(choose_files(found, "/m", (), ())) == list(WEIGHTS)


def test_the_entrys_own_filters_come_before_the_built_in_ones() -> None:
    """Weights are the same again only next to safetensors that the entry itself keeps."""
    found = listing("pytorch_model.bin", *WEIGHTS)
    assert names(choose_files(found, "/m", (), ())) == list(WEIGHTS)
    assert names(choose_files(found, "/m", (), ("*.safetensors",))) == ["pytorch_model.bin", "config.json"]
    assert names(choose_files(found, "/m", ("*.bin",), ())) == ["pytorch_model.bin"]


def test_patterns_and_paths_meet_in_one_normal_form() -> None:
    """A pattern written composed matches a name written decomposed, and the other way round."""
    paths = ("cafe\u0301.png", "caf\u00e9.txt")
    assert select_paths(paths, ["caf\u00e9*"], []) == select_paths(paths, ["cafe\u0301*"], []) == paths
    assert select_paths(paths, [], ["caf\u00e9.png"]) == paths[1:]


def test_nothing_selected_shows_no_raw_names() -> None:
    """Names that a listing made up are escaped in the message."""
    message = nothing_selected("/m", ["a\nb", "bad\udcff", "\x1b[2J"], ["x"], []).message
    assert message.isprintable()
    assert "'a\\nb'" in message


GLOBS = st.lists(st.text("ab/*?[!]", max_size=5), max_size=3)


@given(st.text("ab/", max_size=3), st.text("ab/", min_size=1, max_size=4), GLOBS, GLOBS)
def test_a_folder_that_may_be_passed_over_holds_nothing(
    folder: str, below: str, include: list[str], exclude: list[str]
) -> None:
    """Where nothing below a folder is said to be selectable, no path there is selected."""
    if not may_select_below(f"{folder}/", include, exclude):
        assert select_paths([f"{folder}/{below}"], include, exclude) == ()
