"""A small serving app: look-ups over HTTP, with the standard library's server and freshet's client.

    python deploy/example_app.py --redis redis://localhost:6379 --port 8000

    GET /users/ID                        what is known of a user
    GET /users/ID/recommendations?k=10   the best items for a user; an unknown user gets what is popular
    GET /items/ID/similar?k=10           the items most like an item

404: no such id or path. 400: a k that can't be used. 503: Redis does not answer.
"""

from __future__ import annotations

import argparse
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from serving import Client, Unreachable


class Handler(BaseHTTPRequestHandler):
    client: Client
    ranking = threading.Lock()  # recommend and similar share the client's item matrix

    def do_GET(self) -> None:
        try:
            status, body = self.answer()
        except ValueError as error:
            status, body = 400, {"error": str(error)}
        except Unreachable as error:
            status, body = 503, {"error": str(error)}
        content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self) -> tuple[int, Any]:
        url = urlsplit(self.path)
        k = int(parse_qs(url.query).get("k", ["10"])[0])
        if not 1 <= k <= 1_000:
            raise ValueError("k must be from 1 to 1000")
        answer: Any = None
        match [unquote(part) for part in url.path.strip("/").split("/")]:
            case ["users", user_id]:
                answer = self.client.user(user_id)
            case ["users", user_id, "recommendations"]:
                with self.ranking:
                    answer = self.client.recommend(user_id, k)
            case ["items", item_id, "similar"]:
                with self.ranking:
                    answer = self.client.similar(item_id, k)
        return (404, {"error": "not found"}) if answer is None else (200, answer)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--redis", default="redis://localhost:6379")
    options.add_argument("--prefix", default="freshet")
    options.add_argument("--port", type=int, default=8000)
    chosen = options.parse_args()
    Handler.client = Client(chosen.redis, chosen.prefix)
    ThreadingHTTPServer(("127.0.0.1", chosen.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
