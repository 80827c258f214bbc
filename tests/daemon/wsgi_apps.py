"""Applications of frameworks, under wsgiref in the pool: Flask, and Django with routes, sessions and a form."""

import os
from typing import Any

import django
import flask
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.urls import path

from poolserver.examples.wsgi import WSGIService

flask_app = flask.Flask(__name__)


@flask_app.get("/hello/<name>")
def hello(name: str) -> dict[str, Any]:
    return {"hello": name, "pid": os.getpid()}


@flask_app.post("/size")
def size() -> str:
    return str(len(flask.request.get_data()))


@flask_app.get("/fail")
def fail() -> str:
    raise RuntimeError("as asked")


class FlaskService(WSGIService):
    """Serves it."""

    application = staticmethod(flask_app)


def visits(request: HttpRequest) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"], "pid": os.getpid(), "token": get_token(request)})


def shout(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.POST["text"].upper())


def stream(_request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(b"%d\n" % number for number in range(1000))


urlpatterns = [path("visits", visits), path("shout", shout), path("stream", stream)]

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="a test's",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)
django.setup()


class DjangoService(WSGIService):
    """Serves it."""

    application = staticmethod(get_wsgi_application())
