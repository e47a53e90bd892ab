"""A shelf of books in Pyramid: routes, views, JSON, errors, streaming."""

import html
import threading

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPNotFound, HTTPUnprocessableEntity
from pyramid.response import Response
from pyramid.view import notfound_view_config, view_config

books = ["The Left Hand of Darkness"]
lock = threading.Lock()


@view_config(route_name="books", request_method="GET")
def shelf(request):
    with lock:
        titles = list(books)
    items = "".join(
        f'<li><a href="{request.route_path("book", number=number)}">{html.escape(title)}</a></li>'
        for number, title in enumerate(titles, start=1)
    )
    return Response(f"<!doctype html><title>Books</title><h1>Books</h1><ol>{items}</ol>\n")


@view_config(route_name="books", request_method="POST", renderer="json")
def add(request):
    try:
        title = request.json_body["title"]
    except (ValueError, KeyError, TypeError):
        raise HTTPUnprocessableEntity("The key 'title' is missing.") from None
    with lock:
        books.append(str(title))
        number = len(books)
    request.response.status = 201
    request.response.location = request.route_path("book", number=number)
    return {"number": number, "title": title}


def find(request):
    with lock:
        try:
            return books[int(request.matchdict["number"]) - 1]
        except IndexError:
            raise HTTPNotFound("There is no such book.") from None


@view_config(route_name="book", accept="text/html")
def book(request):
    title = html.escape(find(request))
    return Response(f"<!doctype html><title>{title}</title><h1>{title}</h1>\n")


@view_config(route_name="book", accept="application/json", renderer="json")
def book_json(request):
    return {"title": find(request)}


@view_config(route_name="count")
def count(request):
    """A body from a generator leaves piece by piece."""
    to = int(request.params.get("to", 10))
    pieces = (f"{number}\n".encode() for number in range(1, to + 1))
    return Response(content_type="text/plain", app_iter=pieces)


@notfound_view_config()
def not_found(request):
    return Response(f"Not found: {request.path}\n", status=404, content_type="text/plain")


def main():
    with Configurator() as config:
        config.add_route("books", "/books")
        config.add_route("home", "/")
        config.add_route("book", r"/books/{number:\d+}")
        config.add_route("count", "/count")
        config.add_view(shelf, route_name="home")
        config.scan(__name__)
    return config.make_wsgi_app()
