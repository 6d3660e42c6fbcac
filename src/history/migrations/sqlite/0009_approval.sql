-- The decision about the plan of a run in approve mode: 'pending', 'approved', 'rejected', 'expired' or 'superseded';
-- null where there is nothing to decide.
ALTER TABLE runs ADD COLUMN approval_state TEXT;
ALTER TABLE runs ADD COLUMN approval_expires_at BIGINT;
ALTER TABLE runs ADD COLUMN approval_by TEXT;
ALTER TABLE runs ADD COLUMN approval_decided_at BIGINT;
ALTER TABLE runs ADD COLUMN approval_detail TEXT;
-- What the job was when it planned, as JSON: a hash for each key that decides what is changed.
ALTER TABLE runs ADD COLUMN approval_definition TEXT;
-- The limit that a person raised with the approval.
ALTER TABLE runs ADD COLUMN approval_max_changes BIGINT;
-- The last run that was started to apply the plan, and how many were.
ALTER TABLE runs ADD COLUMN approval_run BIGINT;
ALTER TABLE runs ADD COLUMN approval_starts BIGINT;
-- The few plans that wait for a decision, or for their run.
CREATE INDEX runs_by_approval ON runs (approval_state, id)
    WHERE approval_state = 'pending' OR approval_state = 'approved';
