package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A step is what is sent without a look at an answer in between.
type step []query

// steps makes a form of round trips; nil stands for the business write.
func steps(plan func(statements, *request) []step) func(statements) form {
	return func(sql statements) form {
		return form{whole: func(ctx context.Context, s *site, conn *pgxpool.Conn, r *request) error {
			for _, st := range plan(sql, r) {
				var err error
				switch {
				case st == nil:
					err = charge(ctx, conn, r)
				case len(st) == 1: // as a program that knows no batches sends it
					_, err = conn.Exec(ctx, st[0].sql, st[0].args...)
				default:
					err = send(ctx, conn, st...)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}}
	}
}

var (
	begin  = ask("begin")
	commit = ask("commit")
)

func settingsOf(sql statements, r *request) query { return sql.settings.with(r.keyArgs()) }
func recordOf(sql statements, r *request) query   { return sql.record.with(r.recordArgs(claim{})) }

func claimOf(r *request) query { return ask(rawClaimSQL, r.id, r.scope, retention) }
func guardOf(r *request) query { return ask(tryLockSQL, r.lock()) }
func lookUpOf(r *request) query {
	return ask(lookUpSQL, r.id, r.scope)
}
func doneOf(r *request) query {
	return ask(insertDoneSQL, r.id, r.scope, retention, r.fingerprint, r.result)
}
func chargeOf(r *request) query { return ask(businessSQL, r.id, int64(1000)) }

func protocolVariants() []variant {
	return []variant{
		{name: "the bare transaction", form: steps(func(statements, *request) []step {
			return []step{{begin}, nil, {commit}}
		})},
		ours("claim with BEGIN, record with COMMIT (ours)"),
		{name: "no claim: the record inserted with COMMIT (unsafe; the floor)", form: steps(func(_ statements, r *request) []step {
			return []step{{begin}, nil, {doneOf(r), commit}}
		})},
		{name: "try-lock and look-up with BEGIN, the record inserted with COMMIT", settings: settingsSQL, form: steps(func(sql statements, r *request) []step {
			return []step{{begin, settingsOf(sql, r), guardOf(r), lookUpOf(r)}, nil, {doneOf(r), commit}}
		})},
		{name: "every statement by itself", calls: updateByKey, form: steps(func(sql statements, r *request) []step {
			return []step{{begin}, {claimOf(r)}, nil, {recordOf(sql, r)}, {commit}}
		})},
		{name: "select for update first, then insert", settings: settingsSQL, calls: updateByKey, form: steps(func(sql statements, r *request) []step {
			return []step{{begin, settingsOf(sql, r), ask(forUpdSQL, r.id, r.scope)}, {claimOf(r)}, nil, {recordOf(sql, r), commit}}
		})},
		{name: "plain select first, then ours", form: lookFirst},
		{name: "two transactions: the claim committed by itself", settings: settingsSQL, calls: updateByKey, form: steps(func(sql statements, r *request) []step {
			return []step{{claimOf(r)}, {begin, settingsOf(sql, r)}, nil, {recordOf(sql, r), commit}}
		})},
		{name: "claim fused with the first statement", settings: settingsSQL, calls: updateByKey, form: steps(func(sql statements, r *request) []step {
			return []step{{begin, settingsOf(sql, r), claimOf(r), chargeOf(r)}, {recordOf(sql, r), commit}}
		})},
		{name: "all in one batch", settings: settingsSQL, calls: updateByKey, form: steps(func(sql statements, r *request) []step {
			return []step{{begin, settingsOf(sql, r), claimOf(r), chargeOf(r), recordOf(sql, r), commit}}
		})},
		{name: "ours, 16 hash partitions", partitioned: true, table: []edit{
			{from: "with (fillfactor = 95)", to: "partition by hash (id)"},
		}, extra: hashPartitions(16)},
	}
}

// lookFirst asks for a record before it begins.
func lookFirst(sql statements) form {
	own := sql.form()
	return form{whole: func(ctx context.Context, s *site, conn *pgxpool.Conn, r *request) error {
		var print, result []byte
		err := conn.QueryRow(ctx, lookUpSQL, r.id, r.scope).Scan(&print, &result)
		if !errors.Is(err, pgx.ErrNoRows) {
			return errors.Join(err, errors.New("a new key was there"))
		}
		after := *s
		after.form = own
		return after.call(ctx, conn, r, true)
	}}
}

func hashPartitions(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf(
			"create table idempotency_keys_%d partition of idempotency_keys for values with (modulus %d, remainder %d) with (fillfactor = 95, autovacuum_enabled = false)", i, n, i))
	}
	return all
}

// protocols: where the claim and the record travel.
func (l *lab) protocols(ctx context.Context) error {
	return l.compare(ctx, "Protocols of a first call, against the bare transaction", true, protocolVariants())
}
