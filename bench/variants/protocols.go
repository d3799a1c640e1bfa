package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The statements of protocols that are not ours.
const (
	insertDoneSQL = `
insert into idempotency_keys (purge_after, id, scope, completed_at, expires_at, fingerprint, result)
values (now() + $3::bigint * interval '1 microsecond', $1, $2, clock_timestamp(), clock_timestamp() + $3::bigint * interval '1 microsecond', $4, $5)`

	tryLockSQL  = `select pg_try_advisory_xact_lock($1)`
	lookUpSQL   = `select fingerprint, result from idempotency_keys where id = $1 and scope = $2`
	forUpdSQL   = lookUpSQL + ` for update`
	rawClaimSQL = `insert into idempotency_keys (id, scope, purge_after) values ($1, $2, now() + $3::bigint * interval '1 microsecond')`
)

// A step is what is sent without a look at an answer in between.
type step []query

// steps makes a form of round trips; nil stands for the business write.
func steps(plan func(*request) []step) func(statements) form {
	return func(statements) form {
		return form{whole: func(ctx context.Context, s *site, conn *pgxpool.Conn, r *request) error {
			for _, st := range plan(r) {
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
	begin    = ask("begin")
	commit   = ask("commit")
	settings = ask(settingsSQL, maxIdle)
)

func claimOf(r *request) query { return ask(rawClaimSQL, r.id, r.scope, retention) }
func guardOf(r *request) query { return ask(tryLockSQL, r.lock()) }
func lookUpOf(r *request) query {
	return ask(lookUpSQL, r.id, r.scope)
}
func recordOf(r *request) query {
	return ask(updateByKeySQL, r.id, r.scope, r.fingerprint, r.result, retention)
}
func doneOf(r *request) query {
	return ask(insertDoneSQL, r.id, r.scope, retention, r.fingerprint, r.result)
}
func chargeOf(r *request) query { return ask(businessSQL, r.id, int64(1000)) }

func protocolVariants() []variant {
	return []variant{
		{name: "the bare transaction", form: steps(func(*request) []step {
			return []step{{begin}, nil, {commit}}
		})},
		ours("claim with BEGIN, record with COMMIT (ours)"),
		{name: "no claim: the record inserted with COMMIT (unsafe; the floor)", form: steps(func(r *request) []step {
			return []step{{begin}, nil, {doneOf(r), commit}}
		})},
		{name: "try-lock and look-up with BEGIN, the record inserted with COMMIT", form: steps(func(r *request) []step {
			return []step{{begin, settings, guardOf(r), lookUpOf(r)}, nil, {doneOf(r), commit}}
		})},
		{name: "every statement by itself", form: steps(func(r *request) []step {
			return []step{{begin}, {claimOf(r)}, nil, {recordOf(r)}, {commit}}
		})},
		{name: "select for update first, then insert", form: steps(func(r *request) []step {
			return []step{{begin, settings, ask(forUpdSQL, r.id, r.scope)}, {claimOf(r)}, nil, {recordOf(r), commit}}
		})},
		{name: "plain select first, then ours", form: lookFirst},
		{name: "two transactions: the claim committed by itself", form: steps(func(r *request) []step {
			return []step{{claimOf(r)}, {begin, settings}, nil, {recordOf(r), commit}}
		})},
		{name: "claim fused with the first statement", form: steps(func(r *request) []step {
			return []step{{begin, settings, claimOf(r), chargeOf(r)}, {recordOf(r), commit}}
		})},
		{name: "all in one batch", form: steps(func(r *request) []step {
			return []step{{begin, settings, claimOf(r), chargeOf(r), recordOf(r), commit}}
		})},
		{name: "ours, 16 hash partitions", partitioned: true, table: []edit{
			{"with (fillfactor = 95)", "partition by hash (id)"},
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

// A replayForm is a way to ask for a record that is there. It returns when the caller
// has the answer.
type replayForm struct {
	name string
	call func(context.Context, *site, *request) error
}

const (
	extendSQL = `
insert into idempotency_keys (id, scope, purge_after) values ($1, $2, now() + $3::bigint * interval '1 microsecond')
on conflict (id, scope) do update set purge_after = excluded.purge_after
where idempotency_keys.expires_at <= now()
returning ctid`
	forUpdateSQL = lookUpSQL + ` for update`
)

func replayForms() []replayForm {
	read := func(row pgx.Row) error {
		var print, result []byte
		return row.Scan(&print, &result)
	}
	return []replayForm{
		{"a select by primary key, no transaction", func(ctx context.Context, s *site, r *request) error {
			return read(s.pool.QueryRow(ctx, lookUpSQL, r.id, r.scope))
		}},
		{"BEGIN, claim and read in one batch; ROLLBACK when the caller has its answer (ours)", replayOurs},
		{"select for update in a transaction", func(ctx context.Context, s *site, r *request) error {
			return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
				return read(tx.QueryRow(ctx, forUpdateSQL, r.id, r.scope))
			})
		}},
		{"on conflict do update where expired, then a select, in a transaction", func(ctx context.Context, s *site, r *request) error {
			return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
				var row pgtype.TID
				if err := tx.QueryRow(ctx, extendSQL, r.id, r.scope, retention).Scan(&row); !errors.Is(err, pgx.ErrNoRows) {
					return errors.Join(err, errors.New("a live record was taken over"))
				}
				return read(tx.QueryRow(ctx, lookUpSQL, r.id, r.scope))
			})
		}},
	}
}

func replayOurs(ctx context.Context, s *site, r *request) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	var batch pgx.Batch
	batch.BeginTx(pgx.TxOptions{})
	for _, q := range []query{s.form.settings[0], s.form.claim(r), s.form.read(r)} {
		batch.Queue(q.sql, q.args...)
	}
	results := conn.SendBatch(ctx, &batch)
	for range 3 {
		if _, err := results.Exec(); err != nil {
			conn.Release()
			return errors.Join(err, results.Close())
		}
	}
	var print, result []byte
	var origin string
	var incomplete, outdated bool
	err = results.QueryRow().Scan(&print, &result, &origin, &incomplete, &outdated)
	err = errors.Join(err, results.Close())
	go func() { // as the package does
		defer conn.Release()
		_, _ = conn.Exec(context.WithoutCancel(ctx), "rollback")
	}()
	return err
}

// replay: what a duplicate of a finished call costs.
func (l *lab) replay(ctx context.Context) error {
	forms := replayForms()
	var all []*site
	defer func() { l.leave(all) }()
	seeds := map[string][]*request{}
	calls := map[string]func(context.Context, *site, *request) error{}
	for _, f := range forms {
		s, err := l.site(ctx, way{}, ours(f.name))
		if err != nil {
			return err
		}
		all = append(all, s)
		calls[s.schema] = f.call
		for range 200 {
			r := s.request(1000, smallResult)
			if err := s.alone(ctx, r); err != nil {
				return err
			}
			seeds[s.schema] = append(seeds[s.schema], r)
		}
	}
	next := map[string]int{}
	op := func(ctx context.Context, s *site) error {
		next[s.schema]++ // one caller
		own := seeds[s.schema]
		return calls[s.schema](ctx, s, own[next[s.schema]%len(own)])
	}
	used := make([]int64, len(all))
	for i, s := range all {
		before, err := l.xids(ctx)
		if err != nil {
			return err
		}
		if _, err := s.turn(ctx, 200, 1, op); err != nil {
			return err
		}
		after, err := l.xids(ctx)
		if err != nil {
			return err
		}
		used[i] = after - before
	}
	lanes, err := l.turns(ctx, all, l.rounds, 100, 1, op)
	if err != nil {
		return err
	}
	t := newTable("replay", "1 caller, until it has the answer", "WAL B", "transaction ids per 1,000")
	for i, at := range lanes {
		t.add(at.name, at.ratio(lanes[0]), at.walPerOp(), grouped(used[i]*5))
	}
	l.show("Replays", t)
	return nil
}
