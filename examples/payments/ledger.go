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
	Written  int64 // charges that were ever inserted, those undone included
	Charges  int64
	Taken    Money // the sum of the charges
	Left     Money // the sum of the balances
	Declines int64
	Keys     int64
}

// readLedger is one statement, so that all numbers are of the same moment. The
// first is the exception: a sequence is outside of transactions, and so shows
// the charges that were undone.
func readLedger(ctx context.Context, pool *pgxpool.Pool) (l ledger, err error) {
	const sql = `
select
	(select case when is_called then last_value else 0 end from charges_id_seq),
	(select count(*) from charges),
	(select coalesce(sum(amount), 0)::bigint from charges),
	(select coalesce(sum(balance), 0)::bigint from accounts),
	(select count(*) from declines),
	(select count(*) from idempotency_keys)`
	err = pool.QueryRow(ctx, sql).Scan(&l.Written, &l.Charges, &l.Taken, &l.Left, &l.Declines, &l.Keys)
	if err != nil {
		return ledger{}, fmt.Errorf("reading the tables: %w", err)
	}
	return l, nil
}

func (l ledger) plus(change ledger) ledger {
	return ledger{
		Written:  l.Written + change.Written,
		Charges:  l.Charges + change.Charges,
		Taken:    l.Taken + change.Taken,
		Left:     l.Left + change.Left,
		Declines: l.Declines + change.Declines,
		Keys:     l.Keys + change.Keys,
	}
}

// columns are the names of the values, in order, and how wide they are printed.
var columns = []struct {
	name  string
	width int
}{{"written", 7}, {"charges", 7}, {"taken", 6}, {"left", 6}, {"declines", 8}, {"keys", 4}}

func (l ledger) values() []string {
	return []string{
		fmt.Sprint(l.Written), fmt.Sprint(l.Charges), l.Taken.String(),
		l.Left.String(), fmt.Sprint(l.Declines), fmt.Sprint(l.Keys),
	}
}

// changes says what is different in after.
func (l ledger) changes(after ledger) string {
	var list []string
	was, is := l.values(), after.values()
	for i, c := range columns {
		if was[i] != is[i] {
			list = append(list, fmt.Sprintf("%s %s→%s", c.name, was[i], is[i]))
		}
	}
	if list == nil {
		return "nothing has changed"
	}
	return strings.Join(list, ", ")
}
