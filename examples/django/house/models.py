from django.db import models


class Guest(models.Model):
    name = models.CharField(max_length=80)
    arrived = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("arrived", "id")

    def __str__(self) -> str:
        return self.name
