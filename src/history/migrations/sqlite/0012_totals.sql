-- The sums of a kind are read from an index, without sorting the runs by kind first.
DROP INDEX runs_by_start;
CREATE INDEX runs_by_start ON runs (started_at);
CREATE INDEX runs_by_kind ON runs (kind, started_at, outcome, done, bytes_freed);
-- The runs with one outcome or in one mode, newest first. Most runs succeed in apply mode: a page of those is found without.
DROP INDEX runs_by_outcome_alone;
CREATE INDEX runs_by_outcome_alone ON runs (outcome, id) WHERE outcome <> 'succeeded';
CREATE INDEX runs_by_mode_alone ON runs (mode, id) WHERE mode <> 'apply';
