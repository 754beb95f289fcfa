"""The order of migrations, which is read without Alembic: it is Alembic's."""

from __future__ import annotations

from importlib.resources import files

from alembic.script import ScriptDirectory

from nbpulse.preparation import find_newest_revision, list_revisions


def test_migrations_stand_in_the_order_in_which_they_are_run() -> None:
    script = ScriptDirectory(str(files("nbpulse") / "migrations"))
    assert list_revisions() == [one.revision for one in script.walk_revisions()][::-1]
    assert find_newest_revision() == script.get_current_head()
