package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// A way to ask for a key that another transaction has claimed and not committed.
type asking struct {
	name  string
	setup []query
	claim func(*site, *request) query
}

// inFlight: how a duplicate learns that a call is in flight.
func (l *lab) inFlight(ctx context.Context) error {
	s, err := l.site(ctx, way{}, ours("in flight"))
	if err != nil {
		return err
	}
	defer l.leave([]*site{s})
	r := s.request(1, smallResult)
	holder, err := s.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	claim := s.form.claim(r)
	if _, err := holder.Exec(ctx, claim.sql, claim.args...); err != nil {
		return err
	}
	t := newTable("a duplicate asks with", "µs until it has its answer", "the answer", "its transaction then")
	for _, a := range []asking{
		{"the guarded claim (ours)", nil, func(s *site, r *request) query { return s.form.claim(r) }},
		{"a claim that waits on the unique index, lock_timeout 1 ms", []query{ask("set local lock_timeout = 1")},
			func(_ *site, r *request) query { return ask(valuesClaimSQL, r.id, r.scope, retention) }},
		{"a claim that waits, lock_timeout 100 ms", []query{ask("set local lock_timeout = 100")},
			func(_ *site, r *request) query { return ask(valuesClaimSQL, r.id, r.scope, retention) }},
		{"select for update nowait", nil, func(_ *site, r *request) query {
			return ask("select ctid from idempotency_keys where id = $1 and scope = $2 for update nowait", r.id, r.scope)
		}},
	} {
		if err := ask1(ctx, s, r, a, t); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	l.show("A key in flight: another transaction has claimed it, and works", t)
	return nil
}

func ask1(ctx context.Context, s *site, r *request, a asking, t *table) error {
	var took []time.Duration
	answer, status := "", ""
	for range 20 {
		tx, err := s.pool.Begin(ctx)
		if err != nil {
			return err
		}
		for _, q := range a.setup {
			if _, err := tx.Exec(ctx, q.sql, q.args...); err != nil {
				return errors.Join(err, tx.Rollback(ctx))
			}
		}
		q := a.claim(s, r)
		start := time.Now()
		var row pgtype.TID
		err = tx.QueryRow(ctx, q.sql, q.args...).Scan(&row)
		took = append(took, time.Since(start))
		answer, status = answered(err), string(tx.Conn().PgConn().TxStatus())
		if err := tx.Rollback(ctx); err != nil {
			return err
		}
	}
	slices.Sort(took)
	state := map[string]string{"T": "goes on", "E": "aborted"}[status]
	t.add(a.name, grouped(took[len(took)/2].Microseconds()), answer, state)
	return nil
}

func answered(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return "an error, " + pgErr.Code
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return "no row"
	}
	return "a row"
}
