"""Flask and Django under the standard library's wsgiref, as they are."""

import http.cookiejar
import json
import urllib.error
import urllib.parse
import urllib.request

import pytest

from poolserver.examples.wsgi import MAX_BODY_BYTES


class Browser:
    """A client that keeps its cookies."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(jar)

    def get(self, path: str, body: bytes | None = None) -> bytes:
        with self._opener.open(self._root + path, body, timeout=20) as reply:
            return reply.read()


def test_flask(daemon):
    """JSON, a body as large as it comes, and an application that raises: an answer, and its stack in the log."""
    served = daemon("wsgi_apps:FlaskService", workers=2, threads=2)
    browser = Browser(served.port)
    told = [json.loads(browser.get("/hello/w%C3%B6rld")) for _ in range(4)]
    assert {each["hello"] for each in told} == {"wörld"}
    assert {each["pid"] for each in told} <= set(served.workers())
    assert browser.get("/size", bytes(MAX_BODY_BYTES)) == b"%d" % MAX_BODY_BYTES
    with pytest.raises(urllib.error.HTTPError) as failed:
        browser.get("/fail")
    assert failed.value.code == 500
    failed.value.close()
    assert "RuntimeError: as asked" in served.log()
    assert served.status()["totals"]["errors"] == 0
    assert served.stop() == 0


def test_django(daemon):
    """Sessions and a form's token over connections of their own, whichever worker; a streamed answer; over a reload."""
    served = daemon("wsgi_apps:DjangoService", workers=2, threads=2)
    browser = Browser(served.port)
    for count in range(1, 4):
        visit = json.loads(browser.get("/visits"))
        assert visit["visits"] == count
    assert served.cli("reload").returncode == 0
    visit = json.loads(browser.get("/visits"))
    assert visit["visits"] == 4
    form = urllib.parse.urlencode({"text": "aloud", "csrfmiddlewaretoken": visit["token"]}).encode()
    assert browser.get("/shout", form) == b"ALOUD"
    assert browser.get("/stream").split() == [b"%d" % number for number in range(1000)]
    assert served.stop() == 0
