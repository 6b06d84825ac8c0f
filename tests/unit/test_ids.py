"""Job ids: UUIDv7 in base32, one job under three names."""

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import clock, ids


def as_uuid(text: str) -> uuid.UUID:
    """The UUID behind 26 letters."""
    number = 0
    for letter in text:
        number = number * 32 + ids.VALUES[letter]
    return uuid.UUID(int=number)


def test_an_id_is_a_uuid_of_version_7_made_now() -> None:
    """Version and variant are where RFC 9562 has them, and the first 48 bits are the time."""
    before = clock.now()
    made = as_uuid(ids.new_id())

    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert before <= made.int >> 80 <= clock.now()


def test_ids_are_26_letters_and_never_the_same() -> None:
    """Also when many are made within one millisecond."""
    made = [ids.new_id() for _ in range(10_000)]

    assert len(set(made)) == 10_000
    assert {len(one) for one in made} == {26}


def test_processes_that_were_forked_make_different_ids() -> None:
    """Though they began alike: what is random of an id is each one's own."""

    def made_by_a_child() -> int:
        read, write = os.pipe()
        if os.fork() == 0:
            while clock.now() <= before:  # an id of the same millisecond goes on from the last
                pass
            os.write(write, ids.new_id().encode())
            os._exit(0)
        os.wait()
        return as_uuid(os.read(read, ids.LENGTH).decode()).int % (1 << 62)

    before = as_uuid(ids.new_id()).int >> 80

    assert made_by_a_child() != made_by_a_child()


def test_ids_sort_by_their_time() -> None:
    """The letters are in the order of their values, so text sorts as the numbers do."""
    first = ids.new_id()
    made_at = clock.now()
    while clock.now() <= made_at + 1:
        pass

    assert first < ids.new_id()
    assert sorted(ids.ALPHABET) == list(ids.ALPHABET)


@pytest.mark.parametrize("prefix", ["job_", "chatcmpl-", "batch_req_", ""])
def test_a_job_has_three_names(prefix: str) -> None:
    """Each leads to the same bare id."""
    job_id = ids.new_id()

    assert ids.bare(prefix + job_id) == job_id


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "job_",
        "0" * 25,
        "0" * 27,
        "job_job_" + "0" * 26,
        "file_" + "0" * 26,
        "I" + "0" * 25,
        "u" + "0" * 25,
        "０" + "0" * 25,
        "0" * 25 + "\n",
        " " + "0" * 26,
    ],
)
def test_what_is_no_id_leads_nowhere(shown: str) -> None:
    """Wrong lengths, prefixes and letters, whatever looks alike."""
    assert ids.bare(shown) is None


@given(st.text())
def test_any_text_is_an_id_or_none(text: str) -> None:
    """Whatever a caller puts into a path, nothing is raised."""
    assert ids.bare(text) in (None, text[-26:])


def test_random_letters_are_of_the_alphabet() -> None:
    """So that a key can be told from what is none by its letters."""
    assert set(ids.random_letters(2_000)) == set(ids.ALPHABET)
    assert ids.prefixed("key_").startswith("key_")
