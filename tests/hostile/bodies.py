"""Bodies and paths that are no proper requests, for every route that takes one."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx

from tests.api.http.test_bad_input import WRONG_JOBS
from tests.hostile.target import Tally, Target

_VALID = b'{"input": {"kind": "generate", "prompt": "a cat", "seed": 7}, "priority": 5}'
MALFORMED = [
    *(body for body, _ in WRONG_JOBS),
    b"[" * 1_000_000,
    b'{"a":' * 200_000,
    b'{"input": {"kind": "generate", "prompt": "a"}, "input": {"kind": "match"}}',
    b'{"input": {"kind": "generate", "prompt": "a", "seed": ' + b"9" * 100_000 + b"}}",
    b'{"input": {"kind": "generate", "prompt": "a", "guidance": 1e99999}}',
    b'{"input": {"kind": "generate", "prompt": "a", "guidance": ' + b"0." + b"1" * 100_000 + b"}}",
    b'{"priority": NaN}',
    b'{"priority": -Infinity}',
    b"\xef\xbb\xbf" + _VALID,
    _VALID.decode().encode("utf-16"),
    _VALID.decode().encode("utf-32"),
    _VALID[:-1],
    _VALID + b"}",
    _VALID + _VALID,
    _VALID.replace(b"a cat", b"\xff\xfe\x80"),
    _VALID.replace(b"a cat", b"\xc0\xaf\xed\xa0\x80"),
    _VALID.replace(b"a cat", b"a\x00cat"),
    _VALID.replace(b"a cat", b"\\u0000\\ud800"),
    _VALID.replace(b"a cat", b"a" * 5_000_000),
    b'{"messages": [' + b'{"role": "user"},' * 100_000 + b'{"role": "user"}]}',
    b'{"jobs": [' + _VALID + b"]" + b"}" * 1000,
    json.dumps({"x" * 1000 + str(number): number for number in range(10_000)}).encode(),
    json.dumps([None] * 1_000_000).encode(),
    b"null",
    b"true",
    b'""',
    b"0",
]
TYPES = [
    {},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/xml"},
    {"Content-Type": "application/json; charset=utf-7"},
    {"Content-Type": "multipart/form-data"},
    {"Content-Type": "multipart/form-data; boundary="},
    {"Content-Type": "multipart/form-data; boundary=" + "x" * 5000},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "\xff/\xfe"},
    {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    {"Content-Type": "application/json", "Content-Encoding": "br, deflate, x"},
]
TRAVERSAL = [
    *("../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
    *("..%252f..%252fetc%252fpasswd", "..%c0%af..%c0%afetc%c0%afpasswd", "....//....//etc/passwd"),
    *("..\\..\\..\\etc\\passwd", "..%5c..%5cetc%5cpasswd", "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd"),
    *("..;/..;/etc/passwd", "%00", "a%00.png", ".", "%2e", "..", "%2e%2e", "~root", "file:%2f%2f%2fetc%2fpasswd"),
    *("%ff%fe", "%", "%zz", "*", "{job_id}", "' OR 1=1 --", "1;SELECT pg_sleep(9)", "${jndi:ldap:%2f%2fx}", "a" * 8000),
]
PREFIXES = ["/", "/v1/", "/v1/jobs/", "/v1/files/", "/v1/datasets/", "/v1/models/", "/v1/batches/", "/web/", "/docs/"]
_SECRET = re.compile(rb"root:[^:]*:0:0:")


def malform(target: Target, tally: Tally) -> None:
    """Each malformed body to each route that takes one, with right and wrong media types; then mutations."""
    routes = _routes_with_body(target)
    with target.client() as client:
        for method, path in routes:
            for body in MALFORMED:
                _send(client, tally, method, path, body, {"Content-Type": "application/json"})
            for headers in TYPES:
                for body in (_VALID, gzip.compress(bytes(20_000_000)), b"--x\r\n" * 10_000):
                    _send(client, tally, method, path, body, headers)
        for body in mutations(target.dice, 1500):
            method, path = target.dice.choice(routes)
            _send(client, tally, method, path, body, {"Content-Type": "application/json"})


def mutations(dice: random.Random, number: int) -> Iterator[bytes]:
    """Valid bodies with a few bytes replaced, cut out, or doubled."""
    valid = [
        _VALID,
        b'{"input": {"kind": "match", "image": {"file_id": "' + b"0" * 64 + b'"}, "text": "\xe7\x8c\xab"}}',
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,A"}}]}]}',
        b'{"source": "s3://a/b", "dry_run": true, "filters": {"min_score": 0.5}, "tasks": ["match"]}',
        b'{"prompt": "a cat", "n": 2, "size": "64x64"}',
    ]
    for _ in range(number):
        body = bytearray(dice.choice(valid))
        for _ in range(dice.randint(1, 5)):
            at = dice.randrange(len(body))
            piece = dice.choice(
                [b"", dice.randbytes(2), b'"', b"{", b"]", b"\\", b"-", b"e9", b"\x00", body[at : at + 9]]
            )
            body[at : at + dice.randrange(4)] = piece
        yield bytes(body)


def traverse(target: Target, tally: Tally) -> None:
    """Paths that lead out of wherever they begin, and words that are no ids."""
    with target.client() as client:
        for prefix in PREFIXES:
            for word in TRAVERSAL:
                for suffix in ("", "/content", "/events", "/image", "/items/0", "/items/0/preview"):
                    for method in ("GET", "DELETE"):
                        # As it is: httpx would take `..` out of a path, and escape it.
                        raw = (prefix + word + suffix).encode("utf-8")
                        request = client.build_request(method, target.url)
                        request.url = request.url.copy_with(raw_path=raw.replace(b" ", b"%20"))
                        _judge(client, tally, request)


def _send(client: httpx.Client, tally: Tally, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    _judge(client, tally, client.build_request(method, path, content=body, headers=encoded))  # type: ignore[arg-type]


def _judge(client: httpx.Client, tally: Tally, request: httpx.Request) -> None:
    shown = f"{request.method} {request.url.raw_path!r} {request.headers.get('content-type')} {request.content[:100]!r}"
    try:
        answer = client.send(request)
    except httpx.RemoteProtocolError:
        tally.count(None, shown)
        return
    tally.count(answer.status_code, shown)
    if _SECRET.search(answer.content):
        tally.find(f"a file of the system came back: {shown}")


def _routes_with_body(target: Target) -> list[tuple[str, str]]:
    paths: dict[str, Any] = target.document()["paths"]
    return [
        (
            method.upper(),
            re.sub(r"{image}", "0", re.sub(r"{(dataset|job)_id}", "0" * 8 + "-0000" * 3 + "-" + "0" * 12, path)),
        )
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "requestBody" in operation
    ]
