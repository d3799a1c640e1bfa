package demo

import (
	"context"
	"fmt"
	"strings"
)

// A ledger is what the tables say at one moment.
type ledger struct {
	Written  int64 // charges that were ever inserted, those undone included
	Charges  int64
	Taken    int64 // the sum of the charges, in cents
	Declines int64
	Keys     int64
}

// readLedger is one statement, so that all numbers are of the same moment. The
// first is the exception: a sequence is outside of transactions, and so shows
// the charges that were undone.
func (d *demo) readLedger(ctx context.Context) (l ledger, err error) {
	const sql = `
select
	(select case when is_called then last_value else 0 end from charges_id_seq),
	(select count(*) from charges),
	(select coalesce(sum(amount), 0)::bigint from charges),
	(select count(*) from declines),
	(select count(*) from idempotency_keys)`
	err = d.pool.QueryRow(ctx, sql).Scan(&l.Written, &l.Charges, &l.Taken, &l.Declines, &l.Keys)
	if err != nil {
		return ledger{}, fmt.Errorf("reading the tables: %w", err)
	}
	return l, nil
}

func (l ledger) minus(before ledger) ledger {
	return ledger{
		Written:  l.Written - before.Written,
		Charges:  l.Charges - before.Charges,
		Taken:    l.Taken - before.Taken,
		Declines: l.Declines - before.Declines,
		Keys:     l.Keys - before.Keys,
	}
}

// String says what a change consists of.
func (l ledger) String() string {
	var list []string
	add := func(n int64, text string) {
		if n != 0 {
			list = append(list, text)
		}
	}
	add(l.Charges, fmt.Sprintf("%+d charge, %s taken", l.Charges, money(l.Taken)))
	add(l.Declines, fmt.Sprintf("%+d decline", l.Declines))
	add(l.Written-l.Charges, fmt.Sprintf("%d charge written and undone", l.Written-l.Charges))
	add(l.Keys, fmt.Sprintf("%+d key", l.Keys))
	if list == nil {
		return "nothing has changed"
	}
	return strings.Join(list, ", ")
}

// money is an amount of cents, to be read.
type money int64

func (m money) String() string {
	sign := ""
	if m < 0 {
		sign, m = "-", -m
	}
	return fmt.Sprintf("%s%d.%02d", sign, m/100, m%100)
}
