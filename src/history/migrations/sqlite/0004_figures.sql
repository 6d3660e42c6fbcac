-- What the rules of the kind left out of a run's plan: counts by reason, as JSON.
ALTER TABLE runs ADD COLUMN left_alone TEXT;

-- Null where it is unknown how much is left, as in a run that ended while it read. SQLite cannot drop NOT NULL.
ALTER TABLE runs ADD COLUMN left_over BIGINT;
UPDATE runs SET left_over = remaining WHERE outcome = 'succeeded' OR planned IS NOT NULL;
ALTER TABLE runs DROP COLUMN remaining;
ALTER TABLE runs RENAME COLUMN left_over TO remaining;
