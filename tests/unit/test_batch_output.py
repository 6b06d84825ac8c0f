"""The files of `sluice batch run`, left in every state that a crash leaves them in."""

from pathlib import Path

import pytest

from cli.batch_output import Note, Output, opened
from cli.failure import USAGE, Failure

FIRST, SECOND = b'{"n":1}\n{"n":2}\n', b'{"n":3}\n'


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output with three results, of which the last has number 4, and its note."""
    path = tmp_path / "results.jsonl"
    with opened(path) as output:
        output.begin(Note("http://api", "0", "key", {"input_file_id": "file-1"}))
        output.submitted("batch_1")
        output.append(FIRST, 2)
        output.append(SECOND, 4)
    return path


def resumed(output: Output) -> tuple[int, int]:
    """The cursor and the number of lines that an output goes on with."""
    output.resume()
    return output.begun.cursor, output.begun.lines


@pytest.mark.parametrize("torn", [b"", b'{"n":', b'{"n":4}\n', b'{"n":4}\n{"n":'])
def test_what_came_after_the_note_is_cut_off(out: Path, torn: bytes) -> None:
    """Whole lines as well: it comes once more."""
    with out.open("ab") as file:
        file.write(torn)
    with opened(out) as output:
        assert resumed(output) == (4, 3)
        assert out.read_bytes() == FIRST + SECOND
        output.append(b'{"n":4}\n', 5)

    assert out.read_bytes() == FIRST + SECOND + b'{"n":4}\n'


@pytest.mark.parametrize("left", [b"", FIRST])
def test_results_that_are_missing_are_read_again_from_the_first(out: Path, left: bytes) -> None:
    """Somebody has removed the file, or some of it."""
    out.write_bytes(left)
    with opened(out) as output:
        assert resumed(output) == (0, 0)

    assert out.read_bytes() == b""


def test_a_note_is_replaced_as_a_whole(out: Path) -> None:
    """What was being written when the machine went down is not looked at."""
    (out.parent / ".results.jsonl.sluice.new").write_text('{"url": "ht')
    with opened(out) as output:
        assert resumed(output) == (4, 3)
        output.forget()

    assert {path.name for path in out.parent.iterdir()} == {out.name, ".results.jsonl.sluice.new"}


def test_an_output_has_one_writer(out: Path) -> None:
    """The second is refused before it does anything."""
    with (
        opened(out),
        pytest.raises(Failure, match="Another `sluice batch run` writes to") as raised,
        opened(out),
    ):
        pass

    assert raised.value.code == USAGE
    assert out.read_bytes() == FIRST + SECOND


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"url": "http://api"}'])
def test_a_note_of_somebody_elses_is_not_touched(out: Path, note: str) -> None:
    """Nor is the output."""
    theirs = out.with_name("results.jsonl.sluice")
    theirs.write_text(note)
    with pytest.raises(Failure, match="none of ours") as raised, opened(out):
        pass

    assert raised.value.code == USAGE
    assert (theirs.read_text(), out.read_bytes()) == (note, FIRST + SECOND)


def test_nothing_stays_of_what_was_not_begun(tmp_path: Path) -> None:
    """An upload that failed, say."""
    with opened(tmp_path / "results.jsonl"):
        pass

    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    """Said as it is."""
    with pytest.raises(Failure, match="is no file"), opened(tmp_path):
        pass
