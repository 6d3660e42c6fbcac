-- Moments are milliseconds since 1970, structures are JSON.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL,
    kind TEXT NOT NULL,
    homeserver TEXT NOT NULL,
    mode TEXT NOT NULL,
    cause TEXT NOT NULL,
    scheduled_for BIGINT,
    started_at BIGINT NOT NULL,
    finished_at BIGINT,
    attempts BIGINT NOT NULL DEFAULT 0,
    outcome TEXT,
    message TEXT,
    planned BIGINT,
    done BIGINT NOT NULL DEFAULT 0,
    failed BIGINT NOT NULL DEFAULT 0,
    skipped BIGINT NOT NULL DEFAULT 0,
    remaining BIGINT NOT NULL DEFAULT 0,
    bytes_planned BIGINT,
    bytes_freed BIGINT,
    sample TEXT
);
CREATE INDEX runs_by_job ON runs (job, id);

-- 'making' stands between the moment a change is sent and the moment its answer is recorded.
CREATE TABLE changes (
    run BIGINT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    seq BIGINT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    count BIGINT NOT NULL,
    state TEXT NOT NULL,
    detail TEXT,
    before TEXT,
    PRIMARY KEY (run, seq)
);

-- The files that a run deleted; bytes is null for one that was not in its plan.
CREATE TABLE files (
    run BIGINT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    media_id TEXT NOT NULL,
    bytes BIGINT,
    PRIMARY KEY (run, media_id)
) WITHOUT ROWID;

-- What is known of a homeserver, by its server name.
CREATE TABLE facts (
    server TEXT NOT NULL,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (server, topic, key)
) WITHOUT ROWID;

-- Media calls whose answer is not recorded: Synapse may still be at work on one.
CREATE TABLE media_calls (
    server TEXT NOT NULL PRIMARY KEY,
    sent_at BIGINT NOT NULL,
    -- Nothing that was uploaded later can go; null where nothing can be looked at.
    uploaded_until BIGINT
) WITHOUT ROWID;
