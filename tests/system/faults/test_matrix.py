"""Every source, every fault: right in the end, or a clear error, and never a wrong byte under a name."""

from __future__ import annotations

import re

import pytest

from cached.contract.reference import ModelRef
from tests.support.s3 import ACCESS_KEY, SECRET_KEY
from tests.support.stages import HUB_TOKEN, SESSION_TOKEN, WEB_PASSWORD, WEB_QUERY
from tests.system.faults.cases import Case, Right, Tried, Wrong
from tests.system.faults.conftest import CASES, Weather, name_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # the first one waits for all cases at once


@pytest.mark.parametrize(("case", "source"), CASES, ids=[name_of(case, source) for case, source in CASES])
def test_a_fault_ends_well_or_clearly(weather: Weather, case: Case, source: str) -> None:
    """The version is there with every byte right, or it says what was wrong and what to do; never anything between."""
    name = name_of(case, source)
    ref, daemon = ModelRef(name, "v1"), weather.daemon
    status, error = daemon.status(ref), daemon.error(ref)
    assert status is not None
    match case.of(source):
        case Right(reason):
            assert status["state"] == "ready", status
            assert daemon.files(ref) == weather.staged[name].files
        case Wrong(reason, said):
            error = daemon.wait_state(ref, "failed")["error"]  # what failed five minutes ago is being tried again
            assert (error["code"], error["permanent"]) == (reason, True), error
            assert said in error["message"] and error["remedy"]
        case Tried(reason):
            assert status["state"] != "failed", status
            error = daemon.wait_error(ref, reason)  # the next try may have cleared it, or met a stall of the machine's
            assert (error["code"], error["permanent"]) == (reason, False), error
    if not isinstance(case.of(source), Right):
        assert not daemon.path(ref).is_symlink()


def test_every_failed_attempt_is_counted_under_its_reason(weather: Weather) -> None:
    """`holdfast_fetch_errors_total` has each reason that was met, as often at least, and no other ones.

    As often, but for S3, whose own library tries twice before it says anything.
    """
    found = {
        (dict(labels)["source"], dict(labels)["reason"]): value
        for labels, value in weather.daemon.samples("holdfast_fetch_errors_total").items()
    }
    assert set(found) == set(weather.expected)
    met = {key: count for key, count in weather.expected.items() if key[0] != "s3"}
    assert not {key: count for key, count in met.items() if found[key] < count}


def test_labels_hold_words_and_nothing_that_a_server_chose(weather: Weather) -> None:
    """No value of a label of the fetch metrics is more than a short word: no URL, path, token or made-up status."""
    for name in ("holdfast_fetch_errors_total", "holdfast_fetch_bytes_total", "holdfast_fetch_seconds_count"):
        for labels in weather.daemon.samples(name):
            assert all(re.fullmatch(r"[a-z0-9_]{1,24}", value) for _, value in labels), labels


def test_secrets_are_in_nothing_that_the_daemon_says(weather: Weather) -> None:
    """Passwords, tokens, session tokens and the queries of signed URLs are in no log line, status or metric."""
    daemon = weather.daemon
    statuses = [path.read_text() for path in daemon.layout.public.status.rglob("*.json")]
    pages = [daemon.get(path)[1] for path in ("/metrics", "/v1/status", "/")]
    said = "\n".join([daemon.log(), *pages, *statuses])
    secrets = (HUB_TOKEN, WEB_PASSWORD, WEB_QUERY, SESSION_TOKEN, ACCESS_KEY, SECRET_KEY)
    assert [secret for secret in (*secrets, "X-Amz-", "Signature=", "Authorization", "Basic ") if secret in said] == []


def test_credentials_went_where_they_belong(weather: Weather) -> None:
    """The Hub got its token, the web server its password, S3 signed requests, and the CDN nothing of it."""
    stages = weather.stages
    assert any(seen.headers.get("authorization") == f"Bearer {HUB_TOKEN}" for seen in stages.hub_front.requests)
    assert any("basic" in seen.headers.get("authorization", "").lower() for seen in stages.origin.requests)
    assert any("X-Amz-Signature" in seen.path for seen in stages.origin.requests)
    assert not [seen for seen in stages.cdn_front.requests if "authorization" in seen.headers]
    assert stages.hub.violations == []


def test_nothing_lies_outside_of_what_was_published(weather: Weather) -> None:
    """Under `public/` there are the versions that are ready and nothing else; no listed path led out of the root."""
    daemon = weather.daemon
    ready = {f"{name}/v1" for name in weather.staged if daemon.state(ModelRef(name, "v1")) == "ready"}
    named = {str(path.relative_to(daemon.layout.public.models)) for path in daemon.layout.public.models.glob("*/*")}
    assert named == ready
    assert not list(daemon.layout.root.parent.parent.rglob("*passwd*"))
