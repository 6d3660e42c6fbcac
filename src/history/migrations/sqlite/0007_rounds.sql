-- How far a job has come in its round: one pass over a list, in as many runs as it takes.
CREATE TABLE rounds (
    job TEXT NOT NULL,
    mode TEXT NOT NULL,
    -- What the round is about: with another definition it starts again.
    definition TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    -- When the last complete round ended.
    finished_at BIGINT,
    entries_read BIGINT NOT NULL,
    entries_total BIGINT NOT NULL,
    -- Where the next run continues; null if it starts a new round.
    resume_after TEXT,
    resume_offset BIGINT,
    -- What the kind found so far, as JSON.
    findings TEXT,
    PRIMARY KEY (job, mode)
) WITHOUT ROWID;

-- How far the round had come after a run, as JSON.
ALTER TABLE runs ADD COLUMN round TEXT;
