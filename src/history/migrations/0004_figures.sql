-- What the rules of the kind left out of a run's plan: counts by reason, as JSON.
ALTER TABLE runs ADD COLUMN left_alone TEXT;
