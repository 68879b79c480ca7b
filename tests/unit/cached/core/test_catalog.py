"""The catalog: what a file means, and that nothing in one entry reaches another."""

from __future__ import annotations

import hashlib
import json

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, Catalog, ParsedCatalog, parse_catalog
from cached.core.yaml_nodes import MAX_CHARACTERS

DIGEST = "sha256:" + "ab" * 32

DESIGN = f"""\
defaults: {{source: "s3://acme-models/{{name}}/{{version}}/"}}
models:
  llama-3.1-8b:
    include: ["*.safetensors", "*.json", "tokenizer*"]
    versions:
      "2024-07-23": {{source: "hf://meta-llama/Llama-3.1-8B@0e9e39f249a1", digest: "{DIGEST}"}}
    prefetch: {{versions: ["2024-07-23"], nodeSelector: {{gpu: h100}}}}
    pin: true
"""


def parsed(text: str, last_good: Catalog = EMPTY_CATALOG) -> ParsedCatalog:
    return parse_catalog(text, last_good)


def good(text: str) -> Catalog:
    result = parse_catalog(text, EMPTY_CATALOG)
    assert result.rejected == ()
    return result.catalog


def test_the_design_example() -> None:
    """The example of the design reads as the design says."""
    catalog = good(DESIGN)
    ref = ModelRef("llama-3.1-8b", "2024-07-23")
    version = catalog.find(ref)
    assert version is not None
    assert (version.ref, version.source) == (ref, "hf://meta-llama/Llama-3.1-8B@0e9e39f249a1")
    assert version.digest == Digest.parse(DIGEST)
    assert (version.include, version.exclude, version.keep) == (("*.safetensors", "*.json", "tokenizer*"), (), True)
    model = catalog.models["llama-3.1-8b"]
    assert (model.prefetch, model.node_selector) == (("2024-07-23",), {"gpu": "h100"})


def test_a_version_without_words_of_its_own_takes_the_default_source() -> None:
    """A template's {name} and {version} are those of the version it is asked for."""
    catalog = good('defaults: {source: "s3://b/{name}/{version}/"}\nmodels: {acme/m: {versions: {v1: null, v2: {}}}}')
    for version in ("v1", "v2"):
        found = catalog.find(ModelRef("acme/m", version))
        assert found is not None
        assert found.source == f"s3://b/acme/m/{version}/"


def test_the_nearest_source_wins() -> None:
    """A version's source beats its model's, which beats the default."""
    catalog = good(
        """
defaults: {source: "s3://default/{version}"}
models:
  a: {source: "s3://model/{version}", versions: {v1: {source: "s3://version/"}, v2: }}
  b: {versions: [v1]}
"""
    )
    sources = {ref: catalog.find(ModelRef.parse(ref)) for ref in ("a@v1", "a@v2", "a@v3", "b@v1")}
    assert {ref: found and found.source for ref, found in sources.items()} == {
        "a@v1": "s3://version/",
        "a@v2": "s3://model/v2",
        "a@v3": "s3://model/v3",
        "b@v1": "s3://default/v1",
    }


def test_unlisted_versions_need_a_template_with_the_version() -> None:
    """A version that is not listed exists only where a source template has {version} for it."""
    catalog = good("models: {fixed: {source: 's3://b/x/', versions: [v1]}, open: {source: 's3://b/{version}'}, none: }")
    assert catalog.find(ModelRef("fixed", "v1")) is not None
    assert catalog.find(ModelRef("fixed", "v2")) is None
    assert catalog.find(ModelRef("open", "v9")) is not None
    assert catalog.find(ModelRef("none", "v1")) is None


def test_a_model_must_be_listed() -> None:
    """The default source alone makes no model known."""
    catalog = good('defaults: {source: "s3://b/{name}/{version}"}\nmodels: {m: , n: {}}')
    assert catalog.find(ModelRef("m", "v1")) is not None
    assert catalog.find(ModelRef("n", "v1")) is not None
    assert catalog.find(ModelRef("other", "v1")) is None


@pytest.mark.parametrize(
    "version", ["1.0", "2024-07-23", "007", "0x10", "1e3", "true", "1_000", "2024-07-23T10.00.00Z"]
)
def test_versions_are_the_text_that_stands_in_the_file(version: str) -> None:
    """A version that YAML reads as a number, a date or a boolean keeps its spelling, as a key and as an item."""
    for versions in (f"{{{version}: }}", f"[{version}]"):
        text = f"models: {{m: {{source: 's3://b', versions: {versions}, prefetch: {{versions: [{version}]}}}}}}"
        catalog = good(text)
        assert list(catalog.models["m"].versions) == [version]
        assert catalog.models["m"].prefetch == (version,)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "needs the key `models`"),
        ("# nothing\n", 1, "needs the key `models`"),
        ("just a text", 1, "mapping"),
        ("- a\n- b\n", 1, "mapping"),
        ("models: [m]\n", 1, "mapping"),
        ("models: {}\nmodel: {}\n", 2, "defaults, models"),
        ("models: {}\nmodels: {}\n", 2, "twice"),
        ("defaults: {sauce: x}\nmodels: {}\n", 1, "known: for, require, source"),
        ("models: {}\ndefaults: {source: 's3://b/{nome}'}\n", 2, "{name} and {version}"),
        ("models: {}\ndefaults: {source: 's3://b/{'}\n", 2, "{name} and {version}"),
        ("models: {}\ndefaults: {source: /data}\n", 2, "URI"),
        ("models: {}\n---\nmodels: {}\n", 2, "another document"),
        ("models:\n  a: [\n", 3, "not YAML"),
        ("models:\n  m: {include: [*.json]}\n", 2, "needs quotes"),
        ("models: &all {}\n", 1, "anchors"),
        ("models: {}\nx: \x00\n", 2, "not allowed"),
        ('"\\UFFFFFFFF": 1', 1, "out of range"),
        pytest.param("%YAML 1." + "1" * 5000 + "\n---\n{}", 1, "out of range", id="digits"),
        pytest.param("[" * 100_000, 1, "deep", id="deep list"),
        pytest.param("{a: " * 100_000, 1, "deep", id="deep mapping"),
        pytest.param("#" * (MAX_CHARACTERS + 1), 1, "characters", id="long"),
        ("models: {? [a, b] : c}\n1: {}", 2, "unknown key '1'"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole(text: str, line: int, says: str) -> None:
    """A file that is no catalog is refused with its line, and nothing of it comes into force."""
    with pytest.raises(Permanent) as caught:
        parsed(text)
    assert caught.value.code == "invalid_catalog"
    assert caught.value.message.startswith(f"catalog, line {line}: ")
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("[v1]", "mapping"),
        (
            "{version: [v1]}",
            "known: exclude, follow, for, include, link, namespaces, pin, prefetch, require, source, trust, versions",
        ),
        ("{pin: true, pin: false}", "twice"),
        ("{pin: 'true'}", "true or false"),
        ("{pin: 1}", "true or false"),
        ('{follow: "true"}', "true or false"),
        ("{include: '*.json'}", "list"),
        ("{include: []}", "selects nothing"),
        ("{exclude: [/abs]}", "matches nothing"),
        ("{exclude: ['']}", "matches nothing"),
        ("{exclude: [[a]]}", "text"),
        ("{source: 's3://b/{version}/{file}'}", "{name} and {version}"),
        ("{source: [a]}", "text"),
        ("{for: tgi}", "transformers, vllm, gguf:QUANTIZATION (as gguf:Q4_K_M) or all, found 'tgi'"),
        ("{for: gguf}", "gguf:Q4_K_M"),
        ("{for: [vllm]}", "text"),
        ("{require: signed}", "expected loadable, found 'signed'"),
        ("{require: true}", "expected loadable"),
        ("{namespaces: team-a}", "expected `namespaces` to be a list"),
        ("{namespaces: [team-a, Team_B]}", "expected a namespace such as team-a, found 'Team_B'"),
        ("{namespaces: [[a]]}", "expected a namespace as text, found a list"),
        ("{link: 'true'}", "`link` to be true or false"),
        ("{trust: sized}", "`trust`: expected known, checked, versioned, found 'sized'"),
        ("{trust: [known]}", "text"),
        ("{namespaces: []}", "an empty `namespaces` gives the model to no pod"),
        ("{namespaces: }", "an empty `namespaces` gives the model to no pod"),
        ('{source: "s3://b/\\ud800"}', "cannot be shown"),
        ("{versions: v1}", "mapping"),
        ("{prefetch: [v1]}", "mapping"),
        ("{prefetch: {}}", "needs the key `versions`"),
        ("{prefetch: {versions: '*'}}", "list"),
        ("{prefetch: {versions: [v1], nodeselector: {}}}", "known: nodeSelector, versions"),
        ("{prefetch: {versions: [v1], nodeSelector: {a: [b]}}}", "text"),
        ("{prefetch: {versions: [v1], nodeSelector: {a: }}}", "text"),
        ("{prefetch: {versions: [v1], nodeSelector: {a: b, a: c}}}", "twice"),
    ],
)
def test_a_bad_model_is_rejected_alone(entry: str, says: str) -> None:
    """A bad entry falls with its line and reason; the models before and after it stand."""
    result = parsed(f"models:\n  before: {{source: 's3://a'}}\n  bad: {entry}\n  after: {{source: 's3://c'}}\n")
    assert list(result.catalog.models) == ["before", "after"]
    (rejection,) = result.rejected
    assert (rejection.where, rejection.line) == ("bad", 3)
    assert says in rejection.reason


def test_namespaces_are_read_and_kept_with_the_last_good_model() -> None:
    """`namespaces` hold for a model; where the key turns bad, the last good ones stay in force."""
    before = good("models: {m: {source: 's3://b', namespaces: [team-a, team-b]}, n: {source: 's3://c'}}")
    both = frozenset({"team-a", "team-b"})
    assert (before.models["m"].namespaces, before.models["n"].namespaces) == (both, None)
    after = parsed("models: {m: {source: 's3://b', namespaces: []}}", before).catalog
    assert after.models["m"].namespaces == both


@pytest.mark.parametrize(
    "name", ["a b", "a--b", "../x", "-a", "a/", "a/b/c/d", "''", "{a: b}", "[a]", "~", "daemon.json"]
)
def test_a_bad_name_is_rejected_alone(name: str) -> None:
    """A name that the grammar refuses takes no other model with it."""
    result = parsed(f"models:\n  ? {name}\n  : {{}}\n  good: {{}}\n")
    assert list(result.catalog.models) == ["good"]
    assert [rejection.line for rejection in result.rejected] == [2]


@pytest.mark.parametrize(
    ("key", "entry", "says"),
    [
        ("v2", "{digest: abc}", "sha256:"),
        ("v2", f"{{digest: 'sha256:{'AB' * 32}'}}", "lower-case"),
        ("v2", "{source: nowhere}", "URI"),
        ("v2", "{sourc: 's3://b'}", "known: digest, follow, for, link, require, source, trust"),
        ("v2", "[]", "mapping"),
        ("v/2", "{}", "not a version"),
        ("~", "{}", "text"),
        ("[a]", "{}", "text"),
    ],
)
def test_a_bad_version_is_rejected_alone(key: str, entry: str, says: str) -> None:
    """A bad version takes neither its model nor another version with it."""
    versions = f"      v1: {{}}\n      ? {key}\n      : {entry}\n      v3:\n"
    text = f"models:\n  m:\n    source: s3://b/\n    versions:\n{versions}"
    result = parsed(text)
    assert list(result.catalog.models["m"].versions) == ["v1", "v3"]
    (rejection,) = result.rejected
    assert rejection.where.startswith("m@")
    assert rejection.line in (6, 7)
    assert says in rejection.reason


def test_a_listed_version_needs_a_source() -> None:
    """A version for which no source is named anywhere is rejected alone."""
    result = parsed("models:\n  m:\n    versions:\n      v1: {source: 's3://b/'}\n      v2: {}\n")
    assert [(r.where, r.line) for r in result.rejected] == [("m@v2", 5)]
    assert list(result.catalog.models["m"].versions) == ["v1"]


def test_no_template_stands_in_for_a_rejected_version() -> None:
    """A version whose pin is misspelt is unknown, not fetched unpinned from the default source."""
    result = parsed("defaults: {source: 's3://b/{version}'}\nmodels: {m: {versions: {v1: {digest: sha256:oops}}}}")
    assert result.catalog.find(ModelRef("m", "v1")) is None
    assert result.catalog.find(ModelRef("m", "v2")) is not None


def test_a_bad_model_keeps_its_last_good_definition() -> None:
    """An entry that was good stays as it was while its new text is bad; the others move on."""
    before = good("models: {a: {source: 's3://old/{version}'}, b: {source: 's3://old/{version}'}}")
    result = parsed("models: {a: {source: oops}, b: {source: 's3://new/{version}'}}", before)
    a, b = (result.catalog.find(ModelRef(name, "v1")) for name in "ab")
    assert [r.where for r in result.rejected] == ["a"]
    assert (a and a.source, b and b.source) == ("s3://old/v1", "s3://new/v1")


def test_a_bad_version_keeps_its_last_good_definition() -> None:
    """A version that was good stays as it was, pin included, while its new text is bad."""
    before = good(f"models: {{m: {{source: 's3://b/', versions: {{v1: {{digest: '{DIGEST}'}}}}}}}}")
    result = parsed("models: {m: {source: 's3://b/', versions: {v1: {digest: oops}, v2: {}}}}", before)
    found = result.catalog.find(ModelRef("m", "v1"))
    assert found is not None
    assert found.digest == Digest.parse(DIGEST)
    assert result.catalog.find(ModelRef("m", "v2")) is not None


def test_what_the_file_no_longer_names_is_gone() -> None:
    """The last good catalog keeps nothing alive that was taken out on purpose."""
    before = good("models: {a: {source: 's3://b/', versions: [v1, v2]}, b: {}}")
    catalog = parsed("models: {a: {source: 's3://b/', versions: [v1]}}", before).catalog
    assert catalog.find(ModelRef("a", "v2")) is None
    assert "b" not in catalog.models


@pytest.mark.parametrize("second", ["LLAMA", "llama"])
def test_names_that_differ_in_case_only(second: str) -> None:
    """Of two names that are equal after case folding, the later is refused, whatever its entry says."""
    result = parsed(f"models:\n  llama: {{source: 's3://a'}}\n  {second}: {{source: 's3://b'}}\n")
    assert {name: model.source for name, model in result.catalog.models.items()} == {"llama": "s3://a"}
    assert [(r.where, r.line) for r in result.rejected] == [(second, 3)]


def test_a_version_listed_twice() -> None:
    """Of two entries for one version the first stands."""
    result = parsed("models:\n  m:\n    versions:\n      v1: {source: 's3://a'}\n      v1: {source: 's3://b'}\n")
    found = result.catalog.find(ModelRef("m", "v1"))
    assert found is not None
    assert found.source == "s3://a"
    assert [(r.where, r.line) for r in result.rejected] == [("m@v1", 5)]


def test_prefetch_leaves_out_what_cannot_be_found() -> None:
    """A prefetch of an unknown version is rejected alone: the model and the other versions stand."""
    result = parsed(
        "models:\n  m:\n    source: s3://b/\n    versions: [v1, v2]\n    prefetch: {versions: [v1, v9, a/b, v2, v1]}\n"
    )
    assert result.catalog.models["m"].prefetch == ("v1", "v2")
    assert [(r.where, r.line) for r in result.rejected] == [("m", 5), ("m", 5)]


def test_a_rejected_version_is_told_once() -> None:
    """A prefetch of a version that was rejected adds no second rejection."""
    result = parsed("models: {m: {versions: {v1: {source: oops}}, prefetch: {versions: [v1]}}}")
    assert [r.where for r in result.rejected] == ["m@v1"]
    assert result.catalog.models["m"].prefetch == ()


SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"models: {{m: {{versions: {{v1: {{source: 'https://u:{SECRET}@h/{{x}}'}}}}}}}}",
        f"models: {{m: {{source: 'https://u:{SECRET}@h/', 'https://u:{SECRET}@h/': x}}}}",
        f"models: {{m: {{source: 'u:{SECRET}@h'}}}}",
        f"models: {{m: {{versions: ['https://u:{SECRET}@h/']}}}}",
        f"models: {{m: {{include: ['https://u:{SECRET}@h/']}}}}",
        f"models: {{'https://u:{SECRET}@h/': {{}}}}",
        f"models: {{m: {{source: 'https://u:{SECRET}@h/', x: [}}}}",
        f"models: {{m: {{source: https://u:{SECRET}@h/: }}}}",
        f"models: {{m: {{source: 'https://u:{SECRET}@h/}}}}",
        f"models: {{m: {{source: 'https://u:{SECRET}@h/{{version}}', versions: [v1]}}}}",
    ],
)
def test_credentials_in_a_source_are_never_repeated(text: str) -> None:
    """Neither an error, nor its causes, nor a rejection, nor a catalog's repr shows a source's user information."""
    try:
        said = repr(parsed(text))
    except Permanent as error:
        chain: BaseException | None = error
        said = ""
        while chain is not None:
            said += f"{chain} {chain!r} "
            chain = chain.__cause__
    assert SECRET not in said


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.text(max_size=12),
    st.sampled_from(["v1", "s3://b/{version}", "*.json", DIGEST, "m", "M", "true"]),
)
keys = st.one_of(
    scalars,
    st.sampled_from(
        ["models", "defaults", "source", "include", "exclude", "versions", "digest", "prefetch", "nodeSelector", "pin"]
    ),
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=25
)


@settings(max_examples=300)
@given(st.one_of(st.text(), documents.map(yaml.safe_dump), documents.map(lambda d: yaml.safe_dump({"models": d}))))
@example("models: {m: !!python/object/apply:os.system ['true']}")
@example("models: !!binary aGk=")
@example("models: {<<: {a: b}}")
@example("\ufeffmodels: {}")
@example("models: {m: {pin: !!bool maybe}}")
def test_any_text_is_a_catalog_or_refused(text: str) -> None:
    """No text whatever gives anything but a catalog or `invalid_catalog`, and every model in force is well-formed."""
    try:
        result = parsed(text)
    except Permanent as error:
        assert error.code == "invalid_catalog"
        return
    for name, model in result.catalog.models.items():
        assert name == model.name
        for version, found in model.versions.items():
            assert found == result.catalog.find(ModelRef(name, version))
    assert len({name.casefold() for name in result.catalog.models}) == len(result.catalog.models)
    assert all(rejection.line >= 1 and rejection.reason for rejection in result.rejected)


def test_a_version_follows_as_its_model_unless_it_says_so() -> None:
    """`follow` of a version wins over that of its model; versions of a template have the model's."""
    text = (
        "models:\n  m:\n    source: 's3://b/{version}/'\n    follow: true\n"
        "    versions: {v1: {}, v2: {follow: false}}\n"
    )
    catalog = parsed(text).catalog
    found = {version: catalog.find(ModelRef("m", version)) for version in ("v1", "v2", "v3")}
    assert {version: entry is not None and entry.follow for version, entry in found.items()} == {
        "v1": True,
        "v2": False,
        "v3": True,
    }


def test_a_request_without_for_and_require_has_the_hash_of_earlier_releases() -> None:
    """Fetch records of earlier releases stay good: `for` and `require` change a request only where they are there."""
    entries = "a: {source: 's3://b/x', versions: [v1]}", "a: {source: 's3://b/x', versions: [v1], for: vllm}"
    strict = "a: {source: 's3://b/x', versions: [v1], for: vllm, require: loadable}"
    requests = [
        parsed(f"models:\n  {entry}\n").catalog.models["a"].versions["v1"].request for entry in (*entries, strict)
    ]
    assert requests[0] == hashlib.sha256(b'["holdfast-request", "s3://b/x", [], []]').hexdigest()
    assert len(set(requests)) == 3


def test_for_and_require_are_the_nearest_entrys() -> None:
    """A version's own `for` and `require` come first, then its model's, then those of `defaults`; null means none."""
    catalog = parse_catalog(
        """
        defaults: {source: "s3://b/{name}/{version}/", for: vllm, require: loadable}
        models:
          plain: {versions: ["1"]}
          own: {for: transformers, require: null, versions: {"1": {}, "2": {for: all, require: loadable}}}
          none: {for: null, versions: {"1": {require: null}}}
        """,
        EMPTY_CATALOG,
    )
    assert catalog.rejected == ()
    found = {
        str(ref): (str(version.preset), version.require_loadable)
        for ref in map(ModelRef.parse, ("plain@1", "plain@unlisted", "own@1", "own@2", "own@3", "none@1", "none@2"))
        if (version := catalog.catalog.find(ref)) is not None
    }
    assert found == {
        "plain@1": ("vllm", True),
        "plain@unlisted": ("vllm", True),
        "own@1": ("transformers", False),
        "own@2": ("all", True),
        "own@3": ("transformers", False),
        "none@1": ("default", False),
        "none@2": ("default", True),
    }


def test_trust_is_taken_from_the_nearest_entry() -> None:
    """A version's own `trust` comes first, then its model's, then that of `defaults`; null means none."""
    catalog = good(
        """
        defaults: {source: "s3://b/{name}/{version}/", trust: checked}
        models:
          plain: {versions: ["1"]}
          own: {trust: known, versions: {"1": {}, "2": {trust: versioned}, "3": {trust: null}}}
        """
    )
    refs = ("plain@1", "plain@unlisted", "own@1", "own@2", "own@3", "own@unlisted")
    found = [version.trust for ref in map(ModelRef.parse, refs) if (version := catalog.find(ref)) is not None]
    assert found == ["checked", "checked", "known", "versioned", "sized", "known"]


def test_a_request_without_trust_has_the_hash_of_earlier_releases() -> None:
    """`trust` counts in the hash of a request only where it is there: a held version meets a want as before."""
    plain, null, checked = (
        good(f"models: {{m: {{source: 's3://b/', versions: [\"1\"]{more}}}}}").find(ModelRef("m", "1"))
        for more in ("", ", trust: null", ", trust: checked")
    )
    assert plain is not None and null is not None and checked is not None
    assert plain.request == null.request != checked.request
    text = json.dumps(["holdfast-request", "s3://b/", [], []])
    assert plain.request == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "uri", ["models:/name/3", "runs:/abc/model", "sagemaker:group", "oci://h/r:t", "git+https://h/r"]
)
def test_a_source_may_have_no_slashes_after_its_scheme(uri: str) -> None:
    """Registries name their models as `models:/name/3`: such a URI stands in a catalog too."""
    found = good(f"models: {{m: {{source: {uri}, versions: [v1]}}}}").find(ModelRef("m", "v1"))
    assert found is not None and found.source == uri


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("defaults: {trust: full}\nmodels: {}", "`trust`: expected known, checked, versioned, found 'full'"),
        ("defaults: {for: llama.cpp}\nmodels: {}", "`for`: "),
        ("defaults: {require: perfect}\nmodels: {}", "`require`: expected loadable, found 'perfect'"),
    ],
)
def test_a_bad_default_names_its_field(text: str, says: str) -> None:
    """A `for` or `require` of `defaults` that is none keeps the last good catalog, with the line."""
    with pytest.raises(Permanent, match=says) as caught:
        parse_catalog(text, EMPTY_CATALOG)
    assert "line 1" in str(caught.value)


def test_a_bad_for_of_a_version_is_rejected_alone() -> None:
    """A version with a wrong `for` is rejected with its line; its siblings stay."""
    text = 'models:\n  m:\n    source: "s3://b/"\n    versions:\n      "1": {for: onnxx}\n      "2": {for: vllm}'
    found = parse_catalog(text, EMPTY_CATALOG)
    assert [(one.where, one.line) for one in found.rejected] == [("m@1", 5)]
    assert list(found.catalog.models["m"].versions) == ["2"]
