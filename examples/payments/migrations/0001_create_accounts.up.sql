-- Money is in cents. The check is the last line of defence of every balance:
-- whatever a program does wrong, an account cannot spend what it does not have.
create table accounts (
	id      text   primary key,
	opening bigint not null,
	balance bigint not null constraint balance_not_negative check (balance >= 0)
);
