-- One row per charge that was refused for good.
create table declines (
	id         bigint      generated always as identity primary key,
	account    text        not null references accounts,
	reference  text        not null,
	amount     bigint      not null,
	reason     text        not null,
	created_at timestamptz not null default now()
);
