package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A ledger is what the tables say at one moment. It is the only source of the
// numbers that the demo prints about money, charges and keys.
type ledger struct {
	Attempts int64 // charges that were ever written, undone ones included
	Charges  int64
	Taken    Money // the sum of the charges
	Declines int64
	Balances Money // the sum of the accounts
	Keys     int64
}

// readLedger is one statement, so that all numbers are of the same moment. The
// attempts are the exception: they are the sequence of the charges' numbers,
// which is outside of transactions and so shows those that were undone.
func readLedger(ctx context.Context, pool *pgxpool.Pool) (l ledger, err error) {
	const sql = `
select
	(select case when is_called then last_value else 0 end from charges_id_seq),
	(select count(*) from charges),
	(select coalesce(sum(amount), 0)::bigint from charges),
	(select count(*) from declines),
	(select coalesce(sum(balance), 0)::bigint from accounts),
	(select count(*) from idempotency_keys)`
	err = pool.QueryRow(ctx, sql).Scan(&l.Attempts, &l.Charges, &l.Taken, &l.Declines, &l.Balances, &l.Keys)
	if err != nil {
		return ledger{}, fmt.Errorf("reading the tables: %w", err)
	}
	return l, nil
}

func (l ledger) plus(change ledger) ledger {
	return ledger{
		Attempts: l.Attempts + change.Attempts,
		Charges:  l.Charges + change.Charges,
		Taken:    l.Taken + change.Taken,
		Declines: l.Declines + change.Declines,
		Balances: l.Balances + change.Balances,
		Keys:     l.Keys + change.Keys,
	}
}

// ledgerColumns name the values, in order.
var ledgerColumns = []string{"attempts", "charges", "taken", "declines", "balances", "keys"}

func (l ledger) values() []string {
	var list []string
	for _, v := range []any{l.Attempts, l.Charges, l.Taken, l.Declines, l.Balances, l.Keys} {
		list = append(list, fmt.Sprint(v))
	}
	return list
}

// changes says what is different in after.
func (l ledger) changes(after ledger) string {
	var list []string
	was, is := l.values(), after.values()
	for i, name := range ledgerColumns {
		if was[i] != is[i] {
			list = append(list, fmt.Sprintf("%s %s→%s", name, was[i], is[i]))
		}
	}
	if list == nil {
		return "nothing has changed"
	}
	return strings.Join(list, ", ")
}
