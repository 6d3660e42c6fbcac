-- Sums over the runs of a month, and the last runs of a job, are read from these alone.
DROP INDEX runs_by_start;
CREATE INDEX runs_by_start ON runs (started_at, kind, outcome, done, bytes_freed);
DROP INDEX runs_by_job;
CREATE INDEX runs_by_job ON runs (job, id, started_at, mode, outcome, planned, done);
-- The runs with one outcome, newest first.
CREATE INDEX runs_by_outcome_alone ON runs (outcome, id);
