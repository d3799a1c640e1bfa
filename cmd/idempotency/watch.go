package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/remedy"
	"github.com/pgidem/idempotency/internal/visible"
)

// A watch prints statistics, once or in a loop.
type watch struct {
	*database
	std    stdio
	every  time.Duration // 0: once
	asJSON bool
	look   func(context.Context, *pgxpool.Pool) (statistic, error)
}

// retryLimit is how long a loop waits, at most, after a round that has failed.
const retryLimit = 10 * time.Second

// run fails at once where the first round fails, or where it would not help to try
// again; else the loop goes on, and only says so.
func (w *watch) run(ctx context.Context) error {
	w.loop = w.every > 0
	return w.connect(ctx, func(pool *pgxpool.Pool) error {
		for first := true; ; first = false {
			pause := w.every
			lasting, err := w.round(ctx, pool)
			switch {
			case w.every == 0:
				return err
			case ctx.Err() != nil:
				return nil
			case err != nil && (first || lasting):
				return err
			case err != nil:
				pause = min(pause, retryLimit)
				fmt.Fprintf(w.std.err, "%s idempotency: %s\n", moment(time.Now()), visible.Text(withoutPassword(err.Error())))
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// round reports whether the next one would fail as well.
func (w *watch) round(ctx context.Context, pool *pgxpool.Pool) (lasting bool, err error) {
	var s statistic
	err = w.within(ctx, pool, func(ctx context.Context, pool *pgxpool.Pool) error {
		err := w.located(func(ctx context.Context, pool *pgxpool.Pool) (err error) {
			s, err = w.look(ctx, pool)
			return err
		})(ctx, pool)
		err = remedy.Of(err, w.Schema)
		e, ok := errors.AsType[*remedy.Error](err)
		lasting = ok && e.Lasting || errors.As(err, new(inspect.Untrusted))
		return err
	})
	if err != nil {
		return lasting, err
	}
	return true, w.print(s)
}

// print writes a round at once, so that an interrupt does not cut it in two.
func (w *watch) print(s statistic) error {
	switch {
	case w.asJSON:
		return jsonLine(w.std.out, s)
	case w.every > 0:
		if _, err := fmt.Fprintln(w.std.out, "Statistics at", s.Now); err != nil {
			return err
		}
		defer fmt.Fprintln(w.std.out)
	}
	return s.print(w.std.out)
}
