package failover_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
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
