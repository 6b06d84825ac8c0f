"""A form with one file in it, read while it arrives: never more of it in memory than one step."""

from collections.abc import AsyncIterator
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from shared.errors import InvalidRequest, UnsupportedMediaType

FILE: Final = "file"
"""The part that is the file."""
STEP: Final = 256 * 1024
"""Bytes of the file that are handed on at once, about."""
MOST_FIELDS: Final = 32
LONGEST_FIELD: Final = 1024
"""Bytes."""
LONGEST_FILENAME: Final = 255


class Form:
    """The parts of a `multipart/form-data` body, in the order: `filename`, `content`, `fields`.

    All three raise `InvalidRequest` for what is not such a body.
    """

    def __init__(self, chunks: AsyncIterator[bytes], content_type: str | None) -> None:
        media_type, options = parse_options_header(content_type)
        if media_type != b"multipart/form-data" or not options.get(b"boundary"):
            raise UnsupportedMediaType("Send the file as 'multipart/form-data', with a boundary.")
        self._chunks = chunks
        self._parser = _parser(options[b"boundary"], self)
        self._header, self._value = bytearray(), bytearray()
        self._part: str | None = None
        """The name of the part that is read; None between parts."""
        self._field = bytearray()
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._content = bytearray()
        self._content_over = False
        self._over = False

    async def filename(self) -> str:
        """The file's name as its sender has it, once the file begins."""
        while self._filename is None:
            if self._over:
                raise InvalidRequest(f"Missing required field '{FILE}'.", param=FILE)
            await self._read()
        return self._filename

    async def content(self) -> AsyncIterator[bytes]:
        """The file's bytes, in steps."""
        while not self._content_over:
            await self._read()
            if len(self._content) >= STEP:
                yield self._taken(self._content)
        if self._content:
            yield self._taken(self._content)

    async def fields(self) -> dict[str, str]:
        """All the other parts."""
        while not self._over:
            await self._read()
        return self._fields

    async def _read(self) -> None:
        chunk = await anext(self._chunks, None)
        if chunk is None:
            raise InvalidRequest("The form breaks off before its end.")
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequest(f"The form cannot be read: {error}.") from None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        """The parser has more of a header's name."""
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        """The parser has more of a header's value."""
        self._value += data[start:end]

    def on_header_end(self) -> None:
        """A part's header is complete."""
        header, value = self._taken(self._header).lower(), self._taken(self._value)
        if header == b"content-disposition":
            self._begin(parse_options_header(value.decode("latin-1"))[1])

    def _begin(self, options: dict[bytes, bytes]) -> None:
        self._part = _text(options.get(b"name", b""))
        if len(self._fields) >= MOST_FIELDS:
            raise InvalidRequest(f"A form may have {MOST_FIELDS} fields at most.")
        if self._part in self._fields or (self._part == FILE and self._filename is not None):
            name = self._part[:80]
            raise InvalidRequest(f"'{name}' can be given only once.", param=name)
        if self._part == FILE:
            name = _text(options.get(b"filename", b""))
            self._filename = name[-LONGEST_FILENAME:] or FILE

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """The parser has more of a part."""
        if self._part == FILE:
            self._content += data[start:end]
        else:
            self._field += data[start:end]
            if len(self._field) > LONGEST_FIELD:
                name = (self._part or "")[:80]
                said = f"The field '{name}' is over {LONGEST_FIELD:,} bytes."
                raise InvalidRequest(said, param=name or None)

    def on_part_end(self) -> None:
        """A part is complete."""
        if self._part == FILE:
            self._content_over = True
        elif self._part:
            self._fields[self._part] = _text(bytes(self._field))
        self._field.clear()
        self._part = None

    def on_end(self) -> None:
        """The form is complete."""
        self._over = True

    @staticmethod
    def _taken(buffer: bytearray) -> bytes:
        taken = bytes(buffer)
        buffer.clear()
        return taken


def _parser(boundary: bytes, form: Form) -> MultipartParser:
    try:
        return MultipartParser(
            boundary,
            {
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_part_data": form.on_part_data,
                "on_part_end": form.on_part_end,
                "on_end": form.on_end,
            },
        )
    except FormParserError as error:
        raise InvalidRequest(f"The form cannot be read: {error}.") from None


def _text(data: bytes) -> str:
    """What can be stored of a name or a value."""
    return data.decode("utf-8", "replace").replace("\0", "\ufffd")
