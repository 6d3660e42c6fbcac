-- How a job stands is looked up by these, however long its history is.
CREATE INDEX runs_by_outcome ON runs (job, outcome, mode, id);
CREATE INDEX runs_by_start ON runs (started_at);
-- The few that are at work, or were when the program ended.
CREATE INDEX runs_unended ON runs (outcome, job, id) WHERE outcome IS NULL;
