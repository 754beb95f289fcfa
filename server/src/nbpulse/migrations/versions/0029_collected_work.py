"""What a course collects of its students' runs is shown to its staff, beside the cells as the teacher wrote them.

`event_contents` says of which course, notebook and cell a text is (docs/decisions/0026): staff see the same rows of it
as of the runs. Where the run is in the ledger no more it says none of it: only its student sees that text.
"""

from alembic import op

from nbpulse.migrations.indexes import make_index

revision = "0029"
down_revision = "0028"

TEAMED = "(course_id = ANY(my_whole_courses()) OR is_my_student(course_id, user_id))"


def upgrade() -> None:
    # Again after a kill: the index, which comes last, has committed what was done before it.
    op.execute(
        "ALTER TABLE event_contents ADD COLUMN IF NOT EXISTS course_id UUID,"
        " ADD COLUMN IF NOT EXISTS notebook_id UUID, ADD COLUMN IF NOT EXISTS cell_id VARCHAR(256)"
    )
    op.execute("ALTER TABLE notebook_cells ADD COLUMN IF NOT EXISTS source TEXT")
    op.execute("GRANT SELECT ON event_contents TO app_staff")
    for policy, role, rows in (
        ("course_staff_policy", "app_user", TEAMED),
        ("staff_policy", "app_staff", "course_id = ANY(my_whole_courses())"),
    ):
        op.execute(f"DROP POLICY IF EXISTS {policy} ON event_contents")
        op.execute(f"CREATE POLICY {policy} ON event_contents FOR SELECT TO {role} USING ({rows})")
    op.execute("SET LOCAL ROLE app_maintenance")  # the owner sees no row
    op.execute(
        "UPDATE event_contents c SET course_id = e.course_id, notebook_id = e.notebook_id, cell_id = e.cell_id"
        " FROM events e WHERE (e.user_id, e.shard, e.event_id, e.occurred_at)"
        " = (c.user_id, c.shard, c.event_id, c.occurred_at)"
    )
    op.execute("SET LOCAL ROLE nbpulse_owner")
    make_index(
        "idx_event_contents_cell", "event_contents", "(course_id, notebook_id, cell_id, user_id, occurred_at DESC)"
    )


def downgrade() -> None:
    op.execute("DROP POLICY staff_policy ON event_contents")
    op.execute("DROP POLICY course_staff_policy ON event_contents")
    op.execute("REVOKE SELECT ON event_contents FROM app_staff")
    op.execute("ALTER TABLE notebook_cells DROP COLUMN source")
    op.execute("ALTER TABLE event_contents DROP COLUMN course_id, DROP COLUMN notebook_id, DROP COLUMN cell_id")
