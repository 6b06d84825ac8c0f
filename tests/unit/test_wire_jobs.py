"""The native view's submissions, the query strings of lists, and the preferences of a caller."""

import pytest

from api.following import FROM_START
from api.parse import validate
from api.wire.chat import MetadataUpdate
from api.wire.jobs import parse_submission
from api.wire.prefer import Prefer, parse_prefer
from api.wire.queries import CompletionFilters, JobFilters, parse_query, parse_starting_after
from shared import clock
from shared.errors import InvalidRequest
from shared.lifecycle import JobStatus
from tests.unit.malformed_chat import OK, with_

ID = "01k3" + "0" * 22


def test_a_submission_is_one_job_or_up_to_a_thousand() -> None:
    """An object is one job; an array is as many as it holds."""
    assert len(parse_submission(OK)) == 1
    assert len(parse_submission([OK] * 1_000)) == 1_000


def test_a_single_job_may_stream_and_an_array_may_say_it_does_not() -> None:
    """Only a stream that nobody could read is refused."""
    assert parse_submission(with_(stream=True))[0].stream is True
    assert parse_submission([with_(stream=False)])[0].stream is False


def test_a_job_may_wait_for_its_time_and_give_up_after_it() -> None:
    """Both are Unix seconds, as all times on the wire."""
    tomorrow = clock.now() // 1000 + 86_400

    [job] = parse_submission(with_(run_at=tomorrow, expires_at=tomorrow + 60, lane="batch"))

    assert (job.run_at, job.expires_at, job.lane) == (tomorrow, tomorrow + 60, "batch")


def test_a_webhook_may_name_the_ends_it_wants_to_hear_of() -> None:
    """Without names it hears of all."""
    hook = {"url": "https://example.com:8443/hook?a=1", "events": ["chat.completion.failed"]}

    [job] = parse_submission(with_(webhook=hook))

    assert job.webhook is not None
    assert job.webhook.model_dump(exclude_none=True) == hook


def test_the_query_of_jobs_becomes_filters() -> None:
    """Text becomes numbers and statuses, any of a job's ids becomes the bare one."""
    filters = parse_query(
        JobFilters,
        [
            ("status", "queued,failed"),
            ("status", "completed"),
            ("metadata[team]", "a=b"),
            ("metadata[]]", "odd"),
            ("created_after", "5"),
            ("limit", "100"),
            ("after", f"chatcmpl-{ID}"),
            ("batch_id", "batch_1"),
        ],
    )

    assert filters == JobFilters(
        status=frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.COMPLETED}),
        metadata={"team": "a=b", "]": "odd"},
        created_after=5,
        limit=100,
        after=ID,
        batch_id="batch_1",
    )


def test_lists_have_the_order_and_the_length_their_readers_expect() -> None:
    """Jobs newest first; completions oldest first, as OpenAI has them."""
    jobs, completions = parse_query(JobFilters, []), parse_query(CompletionFilters, [])

    assert (jobs.order, jobs.limit) == ("desc", 20)
    assert (completions.order, completions.limit) == ("asc", 20)


def test_metadata_is_replaced_or_taken_away_but_never_forgotten() -> None:
    """Null is a wish, an absent field a mistake."""
    assert validate(MetadataUpdate, {"metadata": {"a": "b"}}).metadata == {"a": "b"}
    assert validate(MetadataUpdate, {"metadata": None}).metadata is None

    with pytest.raises(InvalidRequest, match="Missing required field 'metadata'"):
        validate(MetadataUpdate, {})


@pytest.mark.parametrize(
    "header, preference",
    [
        (None, Prefer()),
        ("", Prefer()),
        ("respond-async", Prefer(respond_async=True)),
        ("Respond-Async, wait=20", Prefer(respond_async=True, wait=20)),
        ('wait="20"', Prefer(wait=20)),
        ("wait = 0 , respond-async", Prefer(respond_async=True, wait=0)),
        ("wait=1.5", Prefer(wait=1.5)),
        ('respond-async=""; q=1, wait=5; x="a,b"', Prefer(respond_async=True, wait=5)),
        ("wait=20, wait=30", Prefer(wait=20)),
        ('return=minimal, note="respond-async, wait=9", wait=3', Prefer(wait=3)),
        ("wait=-1", Prefer()),
        ("wait=soon, respond-async", Prefer(respond_async=True)),
        ("wait=1e9", Prefer()),
        ("wait", Prefer()),
        ("respond-async=no", Prefer()),
        ("=, (), wait=4", Prefer(wait=4)),
        ('wait="', Prefer()),
        (", " * 10_000, Prefer()),
        ('a=",' * 10_000, Prefer()),
    ],
)
def test_preferences_are_read_and_what_is_odd_is_ignored(
    header: str | None, preference: Prefer
) -> None:
    """RFC 7240: a preference is never a reason to refuse."""
    assert parse_prefer(header) == preference


@pytest.mark.parametrize(
    "starting_after, last_event_id, seen",
    [
        (None, None, FROM_START),
        ("0", None, 0),
        ("7", None, 7),
        (None, "12", 12),
        ("7", "12", 12),
        ("12", "7", 12),
        ("7", "of another server", 7),
        (None, "0", 0),
        (None, "-3", FROM_START),
        (None, "9" * 40, FROM_START),
    ],
)
def test_a_stream_is_taken_up_where_its_reader_stopped(
    starting_after: str | None, last_event_id: str | None, seen: int
) -> None:
    """A browser repeats its first URL, so what it has seen since is the header's."""
    assert parse_starting_after(starting_after, last_event_id) == seen


@pytest.mark.parametrize("value", ["", "-1", "1.5", "seven", "٣", " 3", str(2**63), "9" * 5_000])
def test_a_starting_point_that_is_no_number_is_refused(value: str) -> None:
    """To start from the beginning instead would repeat everything."""
    with pytest.raises(InvalidRequest) as refused:
        parse_starting_after(value, "5")

    assert refused.value.param == "starting_after"
