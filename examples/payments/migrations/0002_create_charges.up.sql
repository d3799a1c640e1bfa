-- One row per charge that happened. There is no column for the idempotency key:
-- a business table does not need to know about it. Nor is the reference unique:
-- it is the customer's, who may well pay twice for what has one name; and a
-- unique index would turn the retry away, where it should get its receipt.
--
-- The numbers come from a sequence, which a rollback does not turn back, so a
-- gap is a charge that was written and then undone.
create table charges (
	id         bigint      generated always as identity primary key,
	account    text        not null references accounts,
	reference  text        not null,
	amount     bigint      not null check (amount > 0),
	created_at timestamptz not null default now()
);

create index on charges (account, id);
