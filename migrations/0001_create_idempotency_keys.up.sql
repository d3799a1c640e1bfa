-- The primary key leads with the id, so that time-ordered ids grow the index
-- at its right edge however many scopes there are. It holds the scope, so that
-- the table can be distributed by tenant or guarded by row-level security.
-- collate "C": compared as bytes, and no reindex after a collation upgrade.
-- There is no other unique index, no foreign key and no sequence.
--
-- A call inserts its row when it claims the key, and updates it when it records
-- the result. What the claim sets comes first and stays as it is, so that the
-- update logs only what follows. purge_after, the time of the claim plus the
-- retention, is all that the purge's index knows: expires_at is not known before
-- the result is, and to index it would make of every update a new entry in
-- every index. The fillfactor leaves room for it on the claim's page, where
-- pruning cannot make any.
create table if not exists idempotency_keys (
	purge_after  timestamptz not null,
	id           text collate "C" not null,
	scope        text collate "C" not null,
	completed_at timestamptz,
	expires_at   timestamptz,
	fingerprint  bytea,
	result       bytea,
	origin       text collate "C",
	primary key (id, scope)
) with (fillfactor = 95);
