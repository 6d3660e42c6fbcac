-- 1 from the end of a run until the messages about it are made.
ALTER TABLE runs ADD COLUMN unreported BIGINT;
CREATE INDEX runs_unreported ON runs (unreported, id) WHERE unreported = 1;
-- The messages of notifications: 'waiting' to be sent, 'sent', or 'dropped'.
CREATE TABLE messages (
    -- The id of the transaction in which it is sent, however often.
    id TEXT COLLATE "C" PRIMARY KEY,
    notification TEXT COLLATE "C" NOT NULL,
    event TEXT COLLATE "C" NOT NULL,
    -- What it is about: a notification tells each event of a subject once.
    subject TEXT COLLATE "C" NOT NULL,
    job TEXT COLLATE "C",
    mode TEXT COLLATE "C",
    run BIGINT,
    created_at BIGINT NOT NULL,
    -- As JSON; null where there is nothing to send.
    content TEXT,
    state TEXT COLLATE "C" NOT NULL,
    -- 1 once it was sent at least once, whatever the answer.
    attempted BIGINT NOT NULL DEFAULT 0,
    room_id TEXT,
    event_id TEXT,
    sent_at BIGINT,
    UNIQUE (notification, event, subject)
);
CREATE INDEX messages_waiting ON messages (notification, created_at) WHERE state = 'waiting';
CREATE INDEX messages_by_job ON messages (notification, job, mode, created_at);
-- The few plans whose decision was not told yet are among these.
CREATE INDEX messages_by_event ON messages (event, created_at);
