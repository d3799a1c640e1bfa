-- A ride is there before its card is charged: what the provider has been asked for can
-- always be found here. The charge is the provider's name for it.
create table rides (
	id      bigint generated always as identity primary key,
	account text   not null references accounts,
	amount  bigint not null check (amount > 0),
	state   text   not null default 'created' check (state in ('created', 'paid', 'declined')),
	charge  text   not null default ''
);
