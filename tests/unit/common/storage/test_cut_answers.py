"""What a server sends is an object's bytes, all that were asked for, or an error: whatever way it breaks off."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import Entry, Store, open_store, s3_client
from tunery_common.storage.base import ObjectReplaced
from tunery_common.storage.credentials import Credentials

DATA = b"0123456789" * 100
WHOLE = ["Content-Length: 1000"]
CHUNKED = ["Transfer-Encoding: chunked"]


@dataclass
class Scripted:
    """A server that answers every request with the same head and body, and closes the connection then."""

    store: Store
    status: int = 200
    head: list[str] = field(default_factory=list)
    body: bytes = b""
    cut: int = 0
    """Answers that end in the middle, before the others."""

    def answers(self, head: list[str], body: bytes = DATA, status: int = 200) -> None:
        self.status, self.head, self.body = status, head, body


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            lines = [f"HTTP/1.1 {scripted.status} Whatever", "Connection: close", 'ETag: "1"', *scripted.head]
            self.wfile.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
            if self.command != "HEAD":
                self.wfile.write(scripted.body[: len(scripted.body) // 2] if scripted.cut else scripted.body)
            scripted.cut = max(0, scripted.cut - 1)
            self.close_connection = True

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening.server_port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_client, "LONG", s3_client.Patience(attempts=1))
        scripted = Scripted(open_store("s3://b/x", Credentials("the Secret s3", values), "spec.output.uri").store)
    Thread(target=listening.serve_forever, daemon=True).start()
    yield scripted
    listening.shutdown()
    listening.server_close()


def chunked(data: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"64\r\n%s\r\n" % data[at : at + 100] for at in range(0, len(data), 100)) + end


def span(start: int, end: int, size: int | str = 1000) -> str:
    return f"Content-Range: bytes {start}-{end - 1}/{size}"


Read = Callable[[Store], bytes]
READS: dict[str, Read] = {
    "read_bytes": lambda store: store.read_bytes("x"),
    "read_range": lambda store: store.read_range("x", 0, 2000),
    "stream": lambda store: b"".join(store.stream(Entry("x", 1000, '"1"'))),
}
reads = pytest.mark.parametrize("read", READS.values(), ids=READS)


def fails(read: Callable[[], object], words: str) -> None:
    with pytest.raises(TuneryError, match=f"s3://b/x: s3:GetObject failed: .*{words}") as caught:
        read()
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


@reads
@pytest.mark.parametrize("after", [0, 1, 500, 999])
def test_a_body_that_ends_before_its_length(server: Scripted, read: Read, after: int) -> None:
    server.answers(WHOLE, DATA[:after])
    fails(lambda: read(server.store), f"{after} read, but total bytes expected is 1000")


@pytest.mark.parametrize(("head", "body"), [(WHOLE, DATA), (CHUNKED, chunked(DATA))], ids=["length", "chunks"])
@pytest.mark.parametrize("name", ["read_bytes", "read_range"])
def test_what_broke_off_is_asked_for_again(server: Scripted, name: str, head: list[str], body: bytes) -> None:
    server.answers(head, body)
    server.cut = 2
    assert READS[name](server.store) == DATA


@reads
@pytest.mark.parametrize("end", [b"", b"64\r\n0123", b"64\r\n"], ids=["between", "within", "size"])
def test_chunks_that_end_before_the_last(server: Scripted, read: Read, end: bytes) -> None:
    server.answers(CHUNKED, chunked(DATA[:500], end))
    fails(lambda: read(server.store), "IncompleteRead")


@reads
def test_a_body_of_no_known_length_may_be_half_of_it(server: Scripted, read: Read) -> None:
    server.answers([], DATA[:500])
    fails(lambda: read(server.store), "does not say how many bytes it sends")


@reads
@pytest.mark.parametrize(
    ("head", "body"),
    [
        (WHOLE, DATA),
        (CHUNKED, chunked(DATA)),
        ([*WHOLE, "Content-Encoding: gzip"], gzip.compress(DATA, mtime=0).ljust(1000, b"\0")),
    ],
    ids=["length", "chunks", "encoded"],
)
def test_what_comes_whole_is_what_is_stored(server: Scripted, read: Read, head: list[str], body: bytes) -> None:
    server.answers(head, body)
    assert read(server.store) == (DATA if head == CHUNKED else body), "never decoded: digests are of what is stored"


@reads
def test_an_encoded_body_is_counted_as_it_is_sent(server: Scripted, read: Read) -> None:
    body = gzip.compress(DATA, mtime=0).ljust(1000, b"\0")
    server.answers([*WHOLE, "Content-Encoding: gzip"], body[:400])
    fails(lambda: read(server.store), "400 read, but total bytes expected is 1000")


@pytest.mark.parametrize(
    ("head", "body", "words"),
    [
        ([span(300, 400), "Content-Length: 100"], DATA[300:350], "50 read, but total bytes expected is 100"),
        ([span(300, 400), *CHUNKED], chunked(DATA[300:400])[:-30], "IncompleteRead"),
        ([span(300, 400), *CHUNKED], chunked(DATA[300:350] * 4), "more than"),
        ([span(300, 400)], DATA[300:350], "50 read, but total bytes expected is 100"),
        ([span(300, 350), "Content-Length: 50"], DATA[300:350], "bytes 300-349/1000"),
        ([span(0, 100), "Content-Length: 100"], DATA[:100], "bytes 0-99/1000"),
        ([span(300, 500), "Content-Length: 200"], DATA[300:500], "bytes 300-499/1000"),
        (["Content-Range: bytes */1000", "Content-Length: 100"], DATA[300:400], r"bytes \*/1000"),
        (["Content-Length: 100"], DATA[300:400], "other bytes than"),
    ],
    ids=["cut", "chunks", "longer", "unsaid", "shorter", "elsewhere", "wider", "nothing", "anything"],
)
def test_a_range_is_what_was_asked_for_or_fails(server: Scripted, head: list[str], body: bytes, words: str) -> None:
    server.answers(head, body, 206)
    fails(lambda: server.store.read_range("x", 300, 100), words)
    fails(lambda: list(server.store.stream(Entry("x", 1000, '"1"'), 300, 100)), words)


def test_a_range_at_the_end_is_as_long_as_the_object(server: Scripted) -> None:
    server.answers([span(900, 1000), "Content-Length: 100"], DATA[900:], 206)
    assert server.store.read_range("x", 900, 500) == DATA[900:]
    assert b"".join(server.store.stream(Entry("x", 1000, '"1"'), 900, 500)) == DATA[900:]


def test_a_whole_object_in_place_of_a_range_is_taken_for_what_it_is(server: Scripted) -> None:
    """A server that takes no notice of ranges answers 200."""
    server.answers(WHOLE)
    assert server.store.read_range("x", 0, 100) == DATA[:100]
    assert b"".join(server.store.stream(Entry("x", 1000, '"1"'), 0, 100)) == DATA[:100]
    fails(lambda: server.store.read_range("x", 300, 100), "other bytes than")
    fails(lambda: list(server.store.stream(Entry("x", 1000, '"1"'), 300, 100)), "other bytes than")


def test_a_server_that_ignores_conditions_sends_nothing_of_another_object(server: Scripted) -> None:
    server.answers([span(300, 400), "Content-Length: 100"], DATA[300:400], 206)
    with pytest.raises(ObjectReplaced, match="s3://b/x was replaced while it was read"):
        list(server.store.stream(Entry("x", 1000, '"0"'), 300, 100))
    for same in ('W/"1"', "1", ""):
        assert b"".join(server.store.stream(Entry("x", 1000, same), 300, 100)) == DATA[300:400]


def test_what_has_come_before_the_end_is_kept(server: Scripted) -> None:
    server.answers([span(0, 1000), *WHOLE], DATA[:500], 206)
    came: list[bytes] = []
    fails(lambda: came.extend(server.store.stream(Entry("x", 1000, '"1"'))), "500 read")
    assert b"".join(came) == DATA[:500], "a download goes on from there"


@pytest.mark.parametrize("after", [0, 30])
def test_a_listing_that_was_cut_is_not_an_empty_one(server: Scripted, after: int) -> None:
    listing = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>".ljust(100)
    server.answers(["Content-Length: 100"], listing)
    assert server.store.list("x") == []
    server.answers(["Content-Length: 100"], listing[:after])
    with pytest.raises(TuneryError, match="s3:ListBucket failed") as caught:
        server.store.list("x")
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_a_refusal_that_was_cut_does_not_say_that_nothing_is_there(server: Scripted) -> None:
    words = b"<Error><Code>NoSuchBucket</Code></Error>"
    server.answers([f"Content-Length: {len(words)}"], words, 404)
    with pytest.raises(TuneryError, match="the bucket does not exist"):
        server.store.read_bytes("x")
    server.answers([f"Content-Length: {len(words)}"], b"", 404)
    fails(lambda: server.store.read_bytes("x"), "")


def test_an_object_whose_size_is_not_said(server: Scripted) -> None:
    server.answers([])
    with pytest.raises(TuneryError, match="s3://b/x: the server does not say how large it is") as caught:
        server.store.head("x")
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
