"""The tables everything stands on: people, courses, notebooks, sessions, ledger, learner state, time series.

Per-student tables carry `shard` (checked against the specification's md5 route) inside their key, so that one shard can
move by a publication's row filter. `events` and `learning_sessions` are partitioned by month; user_id leads every key.
"""

from alembic import op

revision = "0001"
down_revision = None

SHARD = (
    "shard smallint NOT NULL CHECK (shard = "
    "(('x' || substr(md5(user_id::text), 1, 8))::bit(32)::bigint % 64)::smallint)"
)

PEOPLE = """
CREATE TABLE users (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    username VARCHAR(100) UNIQUE NOT NULL,
    display_name TEXT,
    role VARCHAR(50) DEFAULT 'student',
    merged_into UUID REFERENCES users(id),
    created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT NOW()
);
CREATE INDEX idx_users_username ON users(username);
CREATE TABLE courses (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    title TEXT NOT NULL,
    short_name VARCHAR(50) UNIQUE NOT NULL,
    time_zone VARCHAR(64) NOT NULL DEFAULT 'Asia/Tokyo',
    join_code VARCHAR(16) UNIQUE,
    is_demo BOOLEAN NOT NULL DEFAULT FALSE,
    joined_count INTEGER NOT NULL DEFAULT 0,
    settings JSONB NOT NULL DEFAULT '{}',
    created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT NOW()
);
CREATE TABLE enrolments (
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    role VARCHAR(20) NOT NULL CHECK (role IN ('student', 'assistant', 'instructor')),
    student_number VARCHAR(64),
    seat VARCHAR(40),
    team VARCHAR(40),
    maybe_same_as UUID REFERENCES users(id) ON DELETE SET NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    PRIMARY KEY (user_id, course_id)
);
CREATE INDEX idx_enrolments_course ON enrolments(course_id, role);
CREATE UNIQUE INDEX idx_enrolments_number ON enrolments(course_id, student_number) WHERE maybe_same_as IS NULL;
CREATE TABLE tokens (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    kind VARCHAR(20) NOT NULL CHECK (kind IN ('student', 'staff', 'session', 'link', 'resume')),
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    course_id UUID REFERENCES courses(id) ON DELETE CASCADE,
    scopes TEXT[] NOT NULL DEFAULT '{}',
    secret_hash BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    last_used_at TIMESTAMP WITH TIME ZONE,
    expires_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE
);
CREATE INDEX idx_tokens_user ON tokens(user_id);
CREATE TABLE notebooks (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    path VARCHAR(500) NOT NULL,
    title VARCHAR(200),
    description TEXT,
    cell_count INTEGER DEFAULT 0,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
    UNIQUE (course_id, path)
);
CREATE INDEX idx_notebooks_path ON notebooks(path);
CREATE TABLE notebook_cells (
    notebook_id UUID NOT NULL REFERENCES notebooks(id) ON DELETE CASCADE,
    cell_id VARCHAR(256) NOT NULL,
    cell_index INTEGER,
    cell_type VARCHAR(256),
    title VARCHAR(200),
    is_registered BOOLEAN NOT NULL DEFAULT FALSE,
    student_count INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (notebook_id, cell_id)
);
CREATE TABLE class_meetings (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    course_id UUID NOT NULL REFERENCES courses(id) ON DELETE CASCADE,
    title VARCHAR(200),
    notebook_ids UUID[] NOT NULL DEFAULT '{}',
    started_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    ended_at TIMESTAMP WITH TIME ZONE,
    started_by UUID REFERENCES users(id) ON DELETE SET NULL
)
"""

LEDGER = f"""
CREATE TABLE event_ids (
    user_id UUID NOT NULL,
    {SHARD},
    event_id UUID NOT NULL,
    ordinal BIGINT NOT NULL,
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (user_id, shard, event_id)
);
CREATE TABLE events (
    user_id UUID NOT NULL,
    {SHARD},
    event_id UUID NOT NULL,
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT clock_timestamp(),
    ordinal BIGINT NOT NULL,
    course_id UUID NOT NULL,
    event_type VARCHAR(40) NOT NULL,
    notebook_id UUID,
    learning_session_id UUID,
    cell_id VARCHAR(256),
    cell_index INTEGER,
    cell_type VARCHAR(256),
    exercise_id VARCHAR(200),
    sequence BIGINT NOT NULL,
    error_fingerprint VARCHAR(16),
    error_message TEXT,
    traceback TEXT,
    data JSONB NOT NULL,
    PRIMARY KEY (user_id, shard, event_id, occurred_at)
) PARTITION BY RANGE (occurred_at);
CREATE INDEX idx_events_course_time ON events(course_id, occurred_at);
CREATE INDEX idx_events_session ON events(user_id, learning_session_id);
CREATE TABLE events_default PARTITION OF events DEFAULT;
CREATE TABLE event_contents (
    user_id UUID NOT NULL,
    {SHARD},
    event_id UUID NOT NULL,
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
    source TEXT,
    output TEXT,
    PRIMARY KEY (user_id, shard, event_id)
);
CREATE TABLE learning_sessions (
    id UUID NOT NULL DEFAULT gen_random_uuid(),
    user_id UUID NOT NULL REFERENCES users(id),
    {SHARD},
    course_id UUID NOT NULL,
    notebook_id UUID REFERENCES notebooks(id),
    started_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    last_activity_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    has_end BOOLEAN NOT NULL DEFAULT FALSE,
    ended_at TIMESTAMP WITH TIME ZONE,
    total_duration_ms BIGINT,
    cell_executions INTEGER DEFAULT 0,
    error_count INTEGER DEFAULT 0,
    PRIMARY KEY (user_id, shard, id, started_at)
) PARTITION BY RANGE (started_at);
CREATE INDEX idx_sessions_user_notebook ON learning_sessions(user_id, notebook_id);
CREATE INDEX idx_sessions_started_at ON learning_sessions(started_at);
CREATE INDEX idx_sessions_composite ON learning_sessions(user_id, started_at DESC, notebook_id);
CREATE TABLE learning_sessions_default PARTITION OF learning_sessions DEFAULT;
CREATE TABLE learner_states (
    user_id UUID NOT NULL,
    {SHARD},
    course_id UUID NOT NULL,
    revision BIGINT NOT NULL DEFAULT 0,
    last_ordinal BIGINT NOT NULL DEFAULT 0,
    last_activity_at TIMESTAMP WITH TIME ZONE,
    notebook_id UUID,
    state BYTEA,
    help_text TEXT,
    merged_into UUID,
    PRIMARY KEY (user_id, shard, course_id)
) WITH (fillfactor = 60);
CREATE INDEX idx_learner_states_course ON learner_states(course_id);
CREATE TABLE learner_cells (
    user_id UUID NOT NULL,
    {SHARD},
    course_id UUID NOT NULL,
    notebook_id UUID NOT NULL,
    cell_id VARCHAR(256) NOT NULL,
    cell_index INTEGER,
    revision INTEGER NOT NULL,
    attempt_count INTEGER NOT NULL,
    error_count INTEGER NOT NULL,
    last_status VARCHAR(20) NOT NULL,
    last_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_sequence BIGINT NOT NULL,
    last_ok_at TIMESTAMP WITH TIME ZONE,
    first_finished_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (user_id, shard, notebook_id, cell_id)
) WITH (fillfactor = 80);
CREATE INDEX idx_learner_cells_notebook ON learner_cells(notebook_id);
CREATE TABLE help_requests (
    user_id UUID NOT NULL,
    {SHARD},
    id UUID NOT NULL,
    course_id UUID NOT NULL,
    notebook_id UUID,
    cell_id VARCHAR(256),
    message TEXT,
    opened_at TIMESTAMP WITH TIME ZONE NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE,
    closed_by UUID,
    PRIMARY KEY (user_id, shard, id)
);
CREATE INDEX idx_help_requests_open ON help_requests(course_id) WHERE closed_at IS NULL;
CREATE TABLE dead_letters (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    stream VARCHAR(100) NOT NULL,
    entry_id VARCHAR(60) NOT NULL,
    user_id UUID,
    code VARCHAR(10) NOT NULL,
    reason TEXT NOT NULL,
    deliveries INTEGER NOT NULL,
    payload TEXT NOT NULL,
    first_seen_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    replayed_at TIMESTAMP WITH TIME ZONE,
    UNIQUE (stream, entry_id)
);
CREATE TABLE series_debt (
    id UUID PRIMARY KEY,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
    points BYTEA NOT NULL
)
"""

TIMESERIES = """
CREATE SCHEMA timeseries;
CREATE TABLE timeseries.cell_executions (
    user_id UUID NOT NULL,
    time_ns BIGINT NOT NULL,
    notebook_path VARCHAR(500) NOT NULL,
    cell_index INTEGER,
    event_type VARCHAR(40) NOT NULL,
    execution_duration_ms DOUBLE PRECISION,
    has_error BOOLEAN NOT NULL,
    error_message VARCHAR(200),
    execution_count INTEGER,
    PRIMARY KEY (user_id, time_ns)
) PARTITION BY RANGE (time_ns);
CREATE INDEX idx_cell_executions_time ON timeseries.cell_executions USING brin (time_ns) WITH (pages_per_range = 16);
CREATE TABLE timeseries.cell_executions_default PARTITION OF timeseries.cell_executions DEFAULT;
CREATE TABLE timeseries.cell_executions_1m (
    minute_ns BIGINT NOT NULL,
    user_id UUID NOT NULL,
    notebook_path VARCHAR(500) NOT NULL,
    execution_count INTEGER NOT NULL,
    timed_count INTEGER NOT NULL,
    duration_sum_ms DOUBLE PRECISION NOT NULL,
    error_count INTEGER NOT NULL,
    PRIMARY KEY (minute_ns, user_id, notebook_path)
);
CREATE TABLE timeseries.stale_minutes (
    minute_ns BIGINT NOT NULL,
    user_id UUID NOT NULL,
    PRIMARY KEY (minute_ns, user_id)
)
"""

GRANTS = """
GRANT USAGE ON SCHEMA public, timeseries TO app_reader, app_writer, app_user, nbpulse_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA public, timeseries TO app_reader, app_user, nbpulse_operator;
REVOKE SELECT ON tokens FROM app_reader;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public, timeseries TO app_writer;
GRANT DELETE ON series_debt, timeseries.cell_executions_1m, timeseries.stale_minutes TO app_writer;
GRANT INSERT, UPDATE ON users, courses, enrolments, tokens, notebooks, learner_states, help_requests TO app_user;
ALTER DEFAULT PRIVILEGES IN SCHEMA public, timeseries GRANT SELECT ON TABLES TO app_reader, app_user, nbpulse_operator;
ALTER DEFAULT PRIVILEGES IN SCHEMA public, timeseries GRANT SELECT, INSERT, UPDATE ON TABLES TO app_writer
"""


def upgrade() -> None:
    for script in (PEOPLE, LEDGER, TIMESERIES, GRANTS):
        for statement in script.split(";\n"):
            op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the first migration has nothing before it: drop the database instead")
