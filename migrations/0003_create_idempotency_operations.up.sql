-- One row for each procedure that has begun and has not ended. The commit that records
-- its result in idempotency_keys deletes the row, so the table is small, and no purge
-- looks at it. number tells an operation from a later one with the same key.
--
-- labels are the steps and calls that have begun, in their order, and results what those
-- that have ended returned. One label more than results is a call whose outcome is not
-- known, begun at progressed_at; or a step whose function sent COMMIT as SQL. What each
-- step changes comes last, so that its update logs only that. No such column is in an
-- index, and the fillfactor leaves room on the page (heap-only tuples).
create table if not exists idempotency_operations (
	id            text collate "C" not null,
	scope         text collate "C" not null,
	number        uuid not null,
	started_at    timestamptz not null,
	due_at        timestamptz not null,
	attempts      integer not null default 0,
	name          text collate "C" not null,
	fingerprint   bytea,
	error         text,
	input         bytea not null,
	progressed_at timestamptz not null,
	labels        text[] not null,
	results       bytea[] not null,
	primary key (id, scope)
) with (fillfactor = 60);
