-- What a run waits for now, and since when; null while it works, and after its end.
ALTER TABLE runs ADD COLUMN waiting_for TEXT;
ALTER TABLE runs ADD COLUMN waiting_since BIGINT;
-- How long it waited in all, and for which reasons, separated by commas.
ALTER TABLE runs ADD COLUMN waited_seconds DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN waited_for TEXT NOT NULL DEFAULT '';
-- The beginning of the answer to a request that a user wrote.
ALTER TABLE changes ADD COLUMN answer TEXT;
