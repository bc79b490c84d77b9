-- API keys. The secret itself is never kept, only its SHA-256. A row is never deleted: revoking dates it, so that a
-- store that ever had a key stays closed, and a revoked key stays on the list.
CREATE TABLE keys (
    id          TEXT    NOT NULL PRIMARY KEY,
    tenant      TEXT    NOT NULL CHECK (length(tenant) BETWEEN 1 AND 128),
    name        TEXT    CHECK (length(name) BETWEEN 1 AND 128),
    sha256      BLOB    NOT NULL UNIQUE CHECK (length(sha256) = 32),
    prefix      TEXT    NOT NULL,                   -- the secret's first characters, to tell keys apart
    rpm         INTEGER CHECK (rpm > 0),            -- requests in a minute; NULL: unlimited
    tpm         INTEGER CHECK (tpm > 0),            -- tokens in a minute, of prompt and output; NULL: unlimited
    concurrency INTEGER CHECK (concurrency > 0),    -- requests inside at once; NULL: unlimited
    created_at  INTEGER NOT NULL,                   -- seconds since 1970
    revoked_at  INTEGER                             -- seconds since 1970; NULL: valid
) STRICT;
