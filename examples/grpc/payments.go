package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// schema is that of the business. Every account begins with 100.00.
const schema = `
create table if not exists accounts (name text primary key, cents bigint not null check (cents >= 0));
create table if not exists charges (id bigint generated always as identity primary key,
	account text not null references accounts, cents bigint not null, purpose text not null)`

const firstCents = 10_000

// charge takes cents from an account. Where there is not enough it takes nothing, and the
// id is 0.
func charge(ctx context.Context, tx pgx.Tx, account string, cents int64, purpose string) (id, left int64, err error) {
	_, err = tx.Exec(ctx, `insert into accounts values ($1, $2) on conflict do nothing`, account, firstCents)
	if err != nil {
		return 0, 0, err
	}
	err = tx.QueryRow(ctx, `update accounts set cents = cents - $2 where name = $1 and cents >= $2 returning cents`, account, cents).Scan(&left)
	if errors.Is(err, pgx.ErrNoRows) {
		err = tx.QueryRow(ctx, `select cents from accounts where name = $1`, account).Scan(&left)
		return 0, left, err
	}
	if err != nil {
		return 0, 0, err
	}
	err = tx.QueryRow(ctx, `insert into charges (account, cents, purpose) values ($1, $2, $3) returning id`, account, cents, purpose).Scan(&id)
	return id, left, err
}

type queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func balance(ctx context.Context, db queryer, account string) (cents int64, err error) {
	err = db.QueryRow(ctx, `select cents from accounts where name = $1`, account).Scan(&cents)
	if errors.Is(err, pgx.ErrNoRows) {
		return firstCents, nil
	}
	return cents, err
}
