"""Schema migrations (Alembic), imported only by `nbpulse migrate`."""

from nbpulse.migrations.runner import migrate

__all__ = ["migrate"]
