"""As much of S3 as the storage of files needs, over loopback."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Bucket:
    """A bucket named `bucket`: what is in it, and the uploads that are under way."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        """Of each upload under way, by its key."""
        self.away = False
        """Answer everything with 403."""

        class Handler(_Handler):
            bucket = self

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What leads S3's clients here."""
        return {
            "AWS_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "here",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def __enter__(self) -> "Bucket":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _asked(self) -> tuple[str, str, bytes]:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        return parts.path.removeprefix("/bucket/"), parts.query, body

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(403 if self.bucket.away else status)
        headers |= {"ETag": '"tag"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        """An object, or a part of one."""
        key, query, body = self._asked()
        if not self.bucket.away:
            if number := re.search(r"partNumber=(\d+)", query):
                self.bucket.parts[key][int(number[1])] = body
            else:
                self.bucket.objects[key] = body
        self._answer(200)

    def do_POST(self) -> None:
        """Begin an upload, complete it, or delete objects."""
        key, query, body = self._asked()
        if query.startswith("uploads"):
            self.bucket.parts[key] = {}
            name = "InitiateMultipartUploadResult"
            inside = f"<Bucket>bucket</Bucket><Key>{key}</Key><UploadId>1</UploadId>"
        elif query.startswith("delete"):
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for each in keys:
                self.bucket.objects.pop(each, None)
            name = "DeleteResult"
            inside = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys)
        else:
            parts = self.bucket.parts.pop(key)
            self.bucket.objects[key] = b"".join(parts[number] for number in sorted(parts))
            name, inside = "CompleteMultipartUploadResult", '<ETag>"tag"</ETag>'
        self._answer(200, f"<?xml version='1.0'?><{name}>{inside}</{name}>".encode())

    def do_DELETE(self) -> None:
        """Abort an upload, or delete an object."""
        key, query, _ = self._asked()
        (self.bucket.parts if query else self.bucket.objects).pop(key, None)
        self._answer(204)

    def do_GET(self) -> None:
        """An object, or a range of it."""
        key, _, _ = self._asked()
        content = self.bucket.objects.get(key)
        if content is None:
            self._answer(404)
        elif wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", "")):
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            where = f"bytes {first}-{last}/{len(content)}"
            self._answer(206, content[first : last + 1], Content_Range=where)
        else:
            self._answer(200, content)

    def do_HEAD(self) -> None:
        """What `do_GET` says, without saying it."""
        self.do_GET()
