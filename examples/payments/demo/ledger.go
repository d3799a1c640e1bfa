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
	Rides    int64 // whatever has become of them
	Fares    int64 // the sum of the rides that are paid, in cents
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
	(select count(*) from idempotency_keys),
	(select count(*) from rides),
	(select coalesce(sum(amount), 0)::bigint from rides where state = 'paid')`
	err = d.pool.QueryRow(ctx, sql).Scan(&l.Written, &l.Charges, &l.Taken, &l.Declines, &l.Keys, &l.Rides, &l.Fares)
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
		Rides:    l.Rides - before.Rides,
		Fares:    l.Fares - before.Fares,
	}
}

// String says what a change consists of.
func (l ledger) String() string {
	var list []string
	add := func(format string, n int64, what string, more ...any) {
		if n > 1 {
			what += "s"
		}
		if n != 0 {
			list = append(list, fmt.Sprintf(format, append([]any{n, what}, more...)...))
		}
	}
	add("%+d %s, %v taken", l.Charges, "charge", money(l.Taken))
	add("%+d %s", l.Declines, "decline")
	add("%d %s written and undone", l.Written-l.Charges, "charge")
	add("%+d %s, %v paid by card", l.Rides, "ride", money(l.Fares))
	add("%+d %s", l.Keys, "key")
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
