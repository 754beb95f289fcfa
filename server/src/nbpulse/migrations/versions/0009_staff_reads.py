"""What a course's staff ask of its history, over a whole school's ledger: their own role, and indexes for it.

`app_user`'s policies are two joined by OR, which PostgreSQL checks row by row. `app_staff` has the staff's alone: an
index on the course answers it once per query (docs/decisions/0012).
"""

from alembic import op

from nbpulse.migrations.indexes import drop_index, make_index

revision = "0009"
down_revision = "0008"

TAUGHT = "course_id = ANY(my_taught_courses())"
STAFF_POLICIES = (
    ("users", "is_my_member(id)"),
    ("courses", "id = ANY(my_taught_courses())"),
    ("notebook_cells", "EXISTS (SELECT FROM notebooks n WHERE n.id = notebook_id)"),
    *((table, TAUGHT) for table in ("enrolments", "notebooks", "events", "learning_sessions", "learner_cells")),
)
LOOKUPS = ("find_my_taught_courses()", "my_taught_courses()", "is_my_member(uuid)")


def upgrade() -> None:
    op.execute("GRANT USAGE ON SCHEMA public TO app_staff")
    for table, rows in STAFF_POLICIES:
        op.execute(f"GRANT SELECT ON {table} TO app_staff")
        op.execute(f"DROP POLICY IF EXISTS staff_policy ON {table}")  # of a run that was killed at an index
        op.execute(f"CREATE POLICY staff_policy ON {table} FOR SELECT TO app_staff USING ({rows})")
    op.execute("SET LOCAL ROLE app_maintenance")
    for name in LOOKUPS:
        op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO app_staff")
    op.execute("SET LOCAL ROLE nbpulse_owner")
    make_index("idx_learner_cells_cell", "learner_cells", "(notebook_id, cell_id, course_id)")
    drop_index("idx_learner_cells_notebook")  # the new one begins as it did
    make_index("idx_events_errors", "events", "(course_id, occurred_at) WHERE error_fingerprint IS NOT NULL")
    # There since the beginning; made again where somebody dropped them.
    make_index("idx_sessions_composite", "learning_sessions", "(user_id, started_at DESC, notebook_id)")
    make_index("idx_sessions_course", "learning_sessions", "(course_id, started_at)")


def downgrade() -> None:
    make_index("idx_learner_cells_notebook", "learner_cells", "(notebook_id)")
    drop_index("idx_learner_cells_cell")
    op.execute("DROP INDEX idx_events_errors")
    for table, _ in STAFF_POLICIES:
        op.execute(f"DROP POLICY staff_policy ON {table}")
        op.execute(f"REVOKE SELECT ON {table} FROM app_staff")
