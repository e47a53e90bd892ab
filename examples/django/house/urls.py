from django.contrib import admin
from django.urls import path

from . import views

urlpatterns = [
    path("", views.page, name="page"),
    path("guests.json", views.guests_json),
    path("guests.txt", views.guests_text),
    path("admin/", admin.site.urls),
]
