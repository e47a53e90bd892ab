"""The same views under both protocols; the streamed one gives each its own kind of iterator."""

import json

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_safe

from .models import Guest

PAGE = """<!doctype html>
<html lang="en"><title>Guests</title><h1>Guests</h1>
<ul>{% for guest in guests %}<li>{{ guest.name }}</li>{% endfor %}</ul>
<form method="post">{% csrf_token %}<label>Name <input name="name" maxlength="80" required></label>
<button>Arrive</button></form>
<p><a href="{% url 'admin:index' %}">The admin</a>, over {{ protocol }}</p></html>
"""


@require_http_methods(["GET", "HEAD", "POST"])
def page(request):
    if request.method == "POST":
        name = request.POST.get("name", "").strip()
        if not name or len(name) > 80:
            return HttpResponse("A name of 1 to 80 letters, please.\n", status=422)
        Guest.objects.create(name=name)
        return redirect("page")
    protocol = "ASGI" if isinstance(request, ASGIRequest) else "WSGI"
    template = engines["django"].from_string(PAGE)
    context = {"guests": Guest.objects.all(), "protocol": protocol}
    return HttpResponse(template.render(context, request))


@csrf_exempt  # no cookie decides anything here
@require_http_methods(["GET", "HEAD", "POST"])
def guests_json(request):
    if request.method == "POST":
        try:
            name = json.loads(request.body)["name"]
        except (ValueError, KeyError, TypeError):
            return JsonResponse({"error": "The key 'name' is missing."}, status=422)
        guest = Guest.objects.create(name=str(name)[:80])
        return JsonResponse({"id": guest.id, "name": guest.name}, status=201)
    return JsonResponse({"guests": list(Guest.objects.values("id", "name"))})


@require_safe
def guests_text(request):
    """All guests, a line each, never all of them in memory."""
    guests = Guest.objects.all()
    if isinstance(request, ASGIRequest):
        lines = _lines_async(guests)
    else:
        lines = (f"{guest.name}\n" for guest in guests.iterator())
    return StreamingHttpResponse(lines, content_type="text/plain; charset=utf-8")


async def _lines_async(guests):
    async for guest in guests.aiterator():
        yield f"{guest.name}\n"
