"""The page's server: static files, networks and examples, and predictions for drawings.

No part of a request reaches the file system: all files are read before the first request.
"""

import ipaddress
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import waitress
from flask import Flask, Response, jsonify, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from werkzeug.exceptions import BadRequest, HTTPException, UnprocessableEntity, UnsupportedMediaType

from jaxmnist.inference import pictures

# A drawing is a square of bytes, 0 for ink and 255 for paper, row by row.
SIDE = 140
BYTES = "application/octet-stream"
# For each address; one page sends at most 40 requests a second.
RATE = "100 per second"
# Enough for a class of thirty: each browser opens six.
CONNECTIONS = 200
# Idle time before a connection is closed.
SECONDS = 10

FOLDER = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/drawing.js": ("drawing.js", "text/javascript"),
    "/asking.js": ("asking.js", "text/javascript"),
    "/answers.js": ("answers.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

# Maps images, uint8 [N, 28, 28], to log-probabilities, [networks, N, 10].
Say = Callable[[np.ndarray], np.ndarray]


def make_app(shown: dict[str, Any], say: Say, local: bool) -> Flask:
    """Return the application.

    Args:
        shown: the networks and examples, JSON-serialisable.
        say: the networks' prediction function.
        local: whether only this machine may open the page.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = SIDE * SIDE
    Limiter(get_remote_address, app=app, storage_uri="memory://", application_limits=[RATE])
    if local:
        app.before_request(_check_name)
    app.after_request(_with_headers)
    app.register_error_handler(HTTPException, _refusal)
    for path, (name, kind) in FILES.items():
        app.add_url_rule(path, name, _constant((FOLDER / name).read_bytes(), kind))
    app.add_url_rule("/shown", view_func=lambda: jsonify(shown), endpoint="shown")
    app.add_url_rule("/read", view_func=lambda: _read(say), endpoint="read", methods=["POST"])
    return app


def _read(say: Say) -> Response:
    """Return the networks' input for the drawing that was sent, and their probabilities."""
    digit = _digit_of_request()
    probabilities = np.exp(say(digit[None])[:, 0].astype(float))
    return jsonify(image=digit.ravel().tolist(), probabilities=probabilities.round(4).tolist())


def _digit_of_request() -> np.ndarray:
    """Return the networks' input for the drawing that was sent: uint8 `[28, 28]`.

    Raises:
        HTTPException: the request holds no drawing.
    """
    if request.mimetype != BYTES:
        raise UnsupportedMediaType(f"expected {BYTES}")
    content = request.get_data()
    if len(content) != SIDE * SIDE:
        raise BadRequest(f"{len(content)} bytes; expected {SIDE} x {SIDE} = {SIDE * SIDE}")
    greys = np.frombuffer(content, np.uint8).reshape(SIDE, SIDE)
    try:
        return pictures.prepare(greys.astype(float))
    except pictures.PictureError as error:
        raise UnprocessableEntity(str(error)) from error


def _check_name() -> None:
    """Reject other host names: a foreign page's name may resolve to this machine."""
    name = urlsplit(f"//{request.host}").hostname or ""
    if name != "localhost" and not is_local(name):
        raise BadRequest(f"{name} is no name of this machine")


def _with_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response


def _refusal(error: HTTPException) -> Response:
    return Response(error.description, error.code, mimetype="text/plain")


def _constant(content: bytes, kind: str) -> Callable[[], Response]:
    return lambda: Response(content, mimetype=kind)


def listen(host: str, port: int) -> socket.socket:
    """Bind the address, before anything else is done.

    Raises:
        OSError: the address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def addresses(listening: socket.socket) -> list[str]:
    """Return the page's URLs: this machine's first, then those for others, if allowed."""
    host, port = listening.getsockname()[:2]
    hosts = [host]
    if ipaddress.ip_address(host).is_unspecified:
        known = [each for of_card in psutil.net_if_addrs().values() for each in of_card]
        others = [each.address for each in known if each.family == listening.family]
        hosts = ["::1" if ":" in host else "127.0.0.1", *(h for h in others if not is_local(h))]
    return [f"http://[{h}]:{port}/" if ":" in h else f"http://{h}:{port}/" for h in hosts]


def is_local(host: str) -> bool:
    """Return whether an address is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(app: Flask, listening: socket.socket) -> None:
    """Serve requests until Ctrl-C."""
    # Waitress warns whenever a few requests arrive at once.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    waitress.serve(
        app,
        sockets=[listening],
        # Above the application's limit, whose error is clearer; below the size that goes to a file.
        max_request_body_size=2 * SIDE * SIDE,
        connection_limit=CONNECTIONS,
        channel_timeout=SECONDS,
        ident=None,
    )
