package failover_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/failover"
)

func TestReadOnlyStandbyIsRefusedWithAClearErrorAndNothingExecuted(t *testing.T) {
	t.Parallel()
	p := failover.New(t, failover.Options{SynchronousCommit: "remote_apply"})
	ctx, key := t.Context(), idempotency.Key{Scope: "test", ID: "recorded"}
	value, _, err := idempotency.Do(ctx, idempotency.New(p.Pool(p.DSN(), 2)), key, execute(key.ID))
	if err != nil {
		t.Fatal(err)
	}
	pool := p.Pool(p.DSNOf(p.Standby), 2)
	const want = "connect to the primary, for example with target_session_attrs=read-write"
	for _, isolation := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		cfg := idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: isolation}}
		store, err := idempotency.NewWithConfig(pool, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"recorded", "new"} {
			_, _, err := idempotency.Do(ctx, store, idempotency.Key{Scope: "test", ID: id}, neverRun(t))
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, a %s key: %v", isolation, id, err)
			}
		}
	}
	rec, err := idempotency.New(pool).Get(ctx, key) // reads only
	if string(rec.Result) != `"`+value+`"` || err != nil {
		t.Errorf("Get returned %s, %v", rec.Result, err)
	}
}

func neverRun(t *testing.T) func(context.Context, pgx.Tx) (string, error) {
	return func(context.Context, pgx.Tx) (string, error) {
		t.Error("the function was run")
		return "", nil
	}
}

// A proxy that splits reads from writes sends a plain select to a standby, which can
// be late. A key that the process knows is asked for by such a select.
func TestStandbyBehindASplittingProxyNeverAnswersForADeletedKey(t *testing.T) {
	t.Parallel()
	p := failover.New(t, failover.Options{Asynchronous: true})
	ctx, key := t.Context(), idempotency.Key{Scope: "test", ID: "known"}
	pool, route := split(p)
	store := idempotency.New(pool)
	old, _, err := idempotency.Do(ctx, store, key, execute(key.ID))
	if err != nil {
		t.Fatal(err)
	}
	const recorded = "select exists (select from idempotency_keys where id = $1)"
	p.Eventually("the record is on the standby", p.Standby, recorded, key.ID)
	p.Exec(p.Standby, "select pg_wal_replay_pause()")
	p.Eventually("the standby is late", p.Standby, "select pg_get_wal_replay_pause_state() = 'paused'")
	p.Exec(p.Primary, "delete from idempotency_keys") // as the Delete of another process
	if !p.Bool(p.Standby, recorded, key.ID) {
		t.Fatal("the standby is not late")
	}

	asked := route(p.Standby)
	value, replayed, err := idempotency.Do(ctx, store, key, execute(key.ID))
	if replayed || value == old || err != nil {
		t.Errorf("got %q, replayed %v, %v; want another value than the deleted %q", value, replayed, err, old)
	}
	if !asked() {
		t.Error("the standby was not asked")
	}
}

// split is a pool each of whose connections serves one use. Route leads the next one to
// another server than the primary, and reports whether that was asked for.
func split(p *failover.Pair) (pool *pgxpool.Pool, route func(*failover.Server) (asked func() bool)) {
	var next atomic.Pointer[pgx.ConnConfig]
	cfg, err := pgxpool.ParseConfig(p.DSNOf(p.Primary))
	if err != nil {
		p.Fatal(err)
	}
	cfg.MaxConns = 2
	cfg.AfterRelease = func(*pgx.Conn) bool { return false }
	cfg.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
		if to := next.Swap(nil); to != nil {
			cc.Port = to.Port
		}
		return nil
	}
	pool, err = pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(pool.Close)
	return pool, func(s *failover.Server) func() bool {
		to, err := pgx.ParseConfig(p.DSNOf(s))
		if err != nil {
			p.Fatal(err)
		}
		next.Store(to)
		return func() bool { return next.Load() == nil }
	}
}
