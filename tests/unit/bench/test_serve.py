"""The servers' benchmark: a real run of our server, and the arithmetic of its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import llama, serve
from bench.servers import OURS, PLAIN, text_of
from cached.contract.errors import Permanent


def test_a_run_times_the_start_and_counts_the_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of our server gives its first token's time, its stages, and all the tokens that were asked for."""
    pytest.importorskip("transformers")
    kept = tmp_path / "samples.json"
    argv = ["--shape=tiny", "--rounds=1", "--streams=2", "--tokens=3", "--prompt-words=4", "--threads=1"]
    assert serve.main([*argv, f"--only={OURS}", f"--work={tmp_path / 'work'}", f"--json={kept}"]) == 0
    shown = capsys.readouterr().out
    assert f"| {OURS}, 2" in shown
    assert "warm_up" in shown
    found = json.loads(kept.read_text())
    assert found["starts"][0]["first_token_s"] >= found["starts"][0]["listening_s"] > 0
    assert found["throughput"][0]["tokens"] == 2 * 2 * 3


def test_the_synthetic_model_says_one_word_a_token(tmp_path: Path) -> None:
    """Any prompt of the bench's words has as many tokens as words, and comes back as it was."""
    transformers = pytest.importorskip("transformers")
    folder = llama.write(tmp_path / "model", llama.SHAPES["tiny"], "float32", "cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = llama.words(900)
    ids = tokenizer(" ".join(prompt)).input_ids
    assert len(ids) == len(prompt)
    assert tokenizer.decode(ids).split() == prompt


def test_only_text_counts_as_a_token() -> None:
    """Keep-alives, ends and usage have no text, whatever a server puts into them."""
    assert text_of(b'data: {"choices": [{"index": 0, "text": " aaab"}]}\n') == " aaab"
    assert text_of(b'data: {"choices": [], "usage": {"completion_tokens": 4}}\n') == ""
    assert text_of(b'data: {"choices": [{"finish_reason": "length", "text": null}]}\n') == ""
    assert text_of(b"data: [DONE]\n") == text_of(b"\n") == text_of(b": ping\n") == ""


def test_an_error_in_a_stream_is_no_end() -> None:
    """A stream that breaks off with an error ends the run, so that no figure is made of it."""
    with pytest.raises(Permanent, match="out of memory"):
        text_of(b'data: {"error": {"message": "out of memory"}}\n')


def test_ratios_pair_the_servers_of_one_round() -> None:
    """A round that slows every server down leaves the ratio as it is."""
    alike = [
        serve.Throughput(row, round_, 8, tokens, wall_s, 1.0, (0.1,))
        for row, round_, tokens, wall_s in (
            (OURS, 1, 100, 1.0),
            (PLAIN, 1, 50, 1.0),
            (OURS, 2, 100, 9.0),
            (PLAIN, 2, 50, 9.0),
        )
    ]
    assert any(line.split("|")[3].strip() == "0.50" for line in serve._rate_table(alike).splitlines() if PLAIN in line)
