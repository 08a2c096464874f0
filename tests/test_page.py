"""The server of the page of `scripts/demo.py`: what it takes and refuses, and its examples."""

import re
import socket
from types import SimpleNamespace

import numpy as np
import pytest

from jaxmnist.inference import pictures
from tests.conftest import SCRIPTS

PAGE = SCRIPTS / "page"
SIDE = 140


@pytest.fixture
def server(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from page import server

    return server


def say(pixels):
    """Two networks: the first reads a 4, the second cannot tell."""
    sure = np.log(np.where(np.arange(10) == 4, 0.91, 0.01))
    return np.stack([np.tile(each, (len(pixels), 1)) for each in (sure, np.full(10, np.log(0.1)))])


@pytest.fixture
def client(server):
    return server.make_app({"networks": [], "examples": []}, say, local=True).test_client()


@pytest.fixture
def drawing():
    """A thick line from top to bottom, black on white."""
    greys = np.full((SIDE, SIDE), 255, np.uint8)
    greys[20:120, 60:75] = 0
    return greys


def post(client, content, kind="application/octet-stream"):
    return client.post("/read", data=content, content_type=kind)


def test_a_drawing_is_answered_with_what_is_seen_and_said(client, drawing):
    reply = post(client, drawing.tobytes())
    assert reply.status_code == 200
    assert reply.json["image"] == pictures.prepare(drawing.astype(float)).ravel().tolist()
    first, second = reply.json["probabilities"]
    assert first == [0.01] * 4 + [0.91] + [0.01] * 5
    assert second == [0.1] * 10


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"", "application/octet-stream", 400, "0 bytes; expected 140 x 140 = 19600"),
        (b"\0" * 19599, "application/octet-stream", 400, "19599 bytes"),
        (b"\0" * 19601, "application/octet-stream", 413, "exceeds"),
        (b"\0" * 19600, "application/octet-stream", 422, "nothing is drawn on it"),
        (b"\xff" * 19600, "application/octet-stream", 422, "nothing is drawn on it"),
        (b"{}", "application/json", 415, "expected application/octet-stream"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "expected application/octet-stream"),
    ],
)
def test_what_is_no_drawing_is_refused_and_the_next_is_answered(
    client, drawing, content, kind, status, words
):
    reply = post(client, content, kind)
    assert reply.status_code == status
    assert words in reply.text
    assert post(client, drawing.tobytes()).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/server.py",
        "/page/server.py",
        "/../demo.py",
        "/%2e%2e/demo.py",
        "/etc/passwd",
        "/static/a",
    ],
)
def test_nothing_but_the_page_is_served(client, path):
    assert client.get(path).status_code == 404


def test_other_methods_are_refused(client):
    assert client.get("/read").status_code == 405
    assert client.post("/", data=b"").status_code == 405
    assert client.delete("/shown").status_code == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:80", 200),
        ("127.0.0.1:8000", 200),
        ("127.0.0.2", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("192.168.0.1", 400),
        ("127.0.0.1.evil.example", 400),
    ],
)
def test_a_page_from_elsewhere_gets_nothing(server, client, host, status):
    """Under a name of its own that leads to this machine, or by asking the browser."""
    reply = client.get("/shown", headers={"Host": host})
    assert reply.status_code == status
    assert "Access-Control-Allow-Origin" not in reply.headers
    public = server.make_app({}, say, local=False).test_client()
    assert public.get("/shown", headers={"Host": host}).status_code == 200


def test_requests_beyond_the_rate_are_refused(server, monkeypatch, drawing):
    monkeypatch.setattr(server, "RATE", "3 per hour")
    client = server.make_app({}, say, local=True).test_client()
    assert client.get("/shown").status_code == 200
    found = [post(client, drawing.tobytes()).status_code for _ in range(4)]
    assert found == [200, 200, 429, 429]


def test_the_page_loads_nothing_from_elsewhere(server, client):
    for path, (name, kind) in server.FILES.items():
        reply = client.get(path)
        assert (reply.status_code, reply.mimetype) == (200, kind)
        assert reply.data == (PAGE / name).read_bytes()
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        names = set(re.findall(r"\w+://[^\"' ]*", reply.text))
        assert names <= {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert post(client, b"").headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_the_address_that_a_browser_opens(server, host, own):
    with server.listen(host, 0) as listening:
        port = listening.getsockname()[1]
        assert server.addresses(listening) == [f"http://{own}:{port}/"]


def test_the_addresses_that_others_open(server, monkeypatch):
    cards = {
        "lo": [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")],
        "eth0": [
            SimpleNamespace(family=socket.AF_PACKET, address="00:00:00:00:00:01"),
            SimpleNamespace(family=socket.AF_INET, address="192.168.0.7"),
            SimpleNamespace(family=socket.AF_INET6, address="fe80::1%eth0"),
        ],
    }
    monkeypatch.setattr(server.psutil, "net_if_addrs", lambda: cards)
    with server.listen("0.0.0.0", 0) as listening:
        port = listening.getsockname()[1]
        assert server.addresses(listening) == [
            f"http://127.0.0.1:{port}/",
            f"http://192.168.0.7:{port}/",
        ]


# ---- The examples


def test_examples_are_easy_digits_and_mistakes_of_each_by_turns(server):
    from page.examples import choose_examples

    labels = np.array([3, 3, 0, 1, 2, 2, 7])
    said = np.full((2, 7, 10), -9.0)
    said[:, np.arange(7), labels] = -0.1
    said[0, 2] = np.where(np.arange(10) == 6, -0.3, -9)  # both err on the third
    said[1, 2] = np.where(np.arange(10) == 8, -0.2, -9)
    said[0, 4] = np.where(np.arange(10) == 6, -0.2, -9)  # more sure of it
    said[1, 6] = np.where(np.arange(10) == 1, -0.4, -9)
    assert choose_examples(said, labels) == [3, 5, 0, 4, 2, 6]


def test_no_more_than_ten_mistakes(server):
    from page.examples import choose_examples

    labels = np.zeros(50, int)
    wrong = np.tile(np.where(np.arange(10) == 1, -0.1, -9), (50, 1))
    assert choose_examples([wrong], labels) == list(range(10))
