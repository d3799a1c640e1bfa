-- Who may use an account: the SHA-256 of each API key.
create table api_keys (
	hash    bytea primary key,
	account text  not null references accounts
);
