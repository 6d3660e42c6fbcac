-- Scheduled jobs as the daemon knows them: since when with this schedule, and the last occurrence that it dealt with.
CREATE TABLE jobs (
    name TEXT NOT NULL PRIMARY KEY,
    schedule TEXT NOT NULL,
    since BIGINT NOT NULL,
    dealt_with BIGINT
) WITHOUT ROWID;

-- What outlives the daemon beside its jobs.
CREATE TABLE switches (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
) WITHOUT ROWID;
