-- The runs on one homeserver, newest first.
CREATE INDEX runs_by_homeserver ON runs (homeserver, id);
-- The runs of a job in one mode since its last success: one look-up, whatever their outcomes.
CREATE INDEX runs_by_mode ON runs (job, mode, id, outcome);
-- The few that were cut off. They are looked for at every start and reload.
CREATE INDEX runs_interrupted ON runs (outcome, job, mode, id) WHERE outcome = 'interrupted';
