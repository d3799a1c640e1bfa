package idemweb_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemweb"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A beside calls do behind the first statement that looks at the version of a record.
type beside struct {
	do   func()
	done bool
}

func (b *beside) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, b, data.SQL)
}

func (b *beside) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	sql, _ := ctx.Value(b).(string)
	if !b.done && strings.HasPrefix(sql, "\nselect extract(epoch from purge_after)::text") {
		b.done = true
		b.do()
	}
}

// Between the look at the record and its deletion nobody can put another one there.
func TestRecordThatWasLookedAtStaysUntilItIsDeleted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	expire(t, pool, "i")
	var refused error
	between := &beside{do: func() {
		_, refused = pool.Exec(context.Background(), "set local lock_timeout = '100ms'; update idempotency_keys set expires_at = now() + interval '1 day'", pgx.QueryExecModeSimpleProtocol)
	}}
	b := open(t, pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = between }), idemweb.Config{Delete: always})
	b.press(b.press(b.find("s", "i"), "Delete…"), "Delete the record").want(t, 200, "Deleted")
	if !between.done || refused == nil {
		t.Errorf("looked: %v, another transaction could change it: %v", between.done, refused)
	}
}

// A row that another transaction has locked is in flight, and is not waited for for long.
func TestLockedRecordIsNotDeleted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	b := open(t, pool, idemweb.Config{Delete: always})
	asked := b.press(b.find("s", "i"), "Delete…")
	undo := errors.New("undo")
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "select from idempotency_keys for update"); err != nil {
			return err
		}
		b.press(asked, "Delete the record").want(t, 409, "Nothing was deleted", "in flight")
		return undo
	})
	if !errors.Is(err, undo) {
		t.Error(err)
	}
	if _, err := idempotency.New(pool).Get(t.Context(), idempotency.Key{Scope: "s", ID: "i"}); err != nil {
		t.Error(err)
	}
}
