"""Make what the project needs to start: database, static files, an administrator."""

import os
import secrets

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Make the database, the administrator's account and the static files."

    def handle(self, *args, **options):
        call_command("migrate", verbosity=0)
        call_command("collectstatic", interactive=False, verbosity=0)
        self.stdout.write(f"Database: {settings.DATABASES['default']['NAME']}")
        users = get_user_model()
        if not users.objects.filter(username="admin").exists():
            password = os.environ.get("HOUSE_ADMIN_PASSWORD") or secrets.token_urlsafe(9)
            users.objects.create_superuser("admin", password=password)
            self.stdout.write(f"Administrator: admin, password: {password}")
