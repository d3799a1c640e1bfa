-- The primary key leads with the id, so that time-ordered ids grow the index
-- at its right edge however many scopes there are. It holds the scope, so that
-- the table can be distributed by tenant or guarded by row-level security.
-- collate "C": compared as bytes, and no reindex after a collation upgrade.
-- There is no other unique index, no foreign key and no sequence.
create table if not exists idempotency_keys (
	created_at   timestamptz not null default now(),
	completed_at timestamptz,
	expires_at   timestamptz,
	id           text collate "C" not null,
	scope        text collate "C" not null,
	fingerprint  bytea,
	result       bytea,
	primary key (id, scope)
);
