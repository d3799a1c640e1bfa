-- One row per charge that happened. There is no column for the idempotency key:
-- a business table does not need to know about it. The numbers come from a
-- sequence, which a rollback does not turn back, so a gap is a charge that was
-- written and then undone.
create table charges (
	id         bigint      generated always as identity primary key,
	account    text        not null references accounts,
	amount     bigint      not null check (amount > 0),
	created_at timestamptz not null default now()
);
