package browsertest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func do(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// execute records a call.
func execute(t *testing.T, pool *pgxpool.Pool, scope, id string, value any) {
	t.Helper()
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Trace: func(ctx context.Context, _ string) (context.Context, string) {
		return ctx, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	}})
	if err != nil {
		t.Fatal(err)
	}
	key := idempotency.Key{Scope: scope, ID: id, Fingerprint: idempotency.FingerprintOf([]byte("10 EUR"))}
	if _, _, err := idempotency.Do(t.Context(), store, key, func(context.Context, pgx.Tx) (any, error) { return value, nil }); err != nil {
		t.Fatal(err)
	}
}

// hold begins a call that ends with the test, and waits until it has its key.
func hold(t *testing.T, pool *pgxpool.Pool, scope, id string) {
	t.Helper()
	begun, end, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_, _, _ = idempotency.Do(context.Background(), idempotency.New(pool), idempotency.Key{Scope: scope, ID: id}, func(context.Context, pgx.Tx) (int, error) {
			close(begun)
			<-end
			return 0, errors.New("the test has ended")
		})
	}()
	t.Cleanup(func() { close(end); <-ended })
	<-begun
}

// stop begins a procedure whose provider does not answer.
func stop(t *testing.T, pool *pgxpool.Pool, scope, id string) {
	t.Helper()
	noAnswer := errors.New("card provider: 503 Service Unavailable")
	ride := idempotency.Procedure[int, string]{Name: "ride", Run: func(ctx context.Context, op *idempotency.Op, amount int) (string, error) {
		if _, err := idempotency.Step(ctx, op, "create", func(context.Context, pgx.Tx) (int, error) { return 7, nil }); err != nil {
			return "", err
		}
		return idempotency.Call(ctx, op, "charge", func(context.Context, string) (string, error) { return "", noAnswer })
	}}
	if _, _, err := ride.Do(t.Context(), idempotency.New(pool), idempotency.Key{Scope: scope, ID: id}, 20); !errors.Is(err, noAnswer) {
		t.Fatal(err)
	}
	_, _ = idempotency.New(pool).Complete(t.Context(), 0, ride) // an attempt that fails as well
}

// busy is a database of a shop on an ordinary day.
func busy(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.New(t, pgtest.MaxConns(20), func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["application_name"] = "checkout" })
	// The calls of a day, more of them by day than by night; a few have expired.
	do(t, pool, `insert into idempotency_keys (purge_after, id, scope, completed_at, expires_at, fingerprint, result, origin)
		select t + interval '1 day', 'charge/order-' || i, 'customer-' || (30 * power((i * 7919 % 1000) / 1000.0, 3))::int, t + interval '70 milliseconds', t + interval '1 day 70 milliseconds',
			decode(md5(i::text) || md5(i::text), 'hex'), convert_to('{"receipt": ' || i || ', "amount": "' || i % 90 || ' EUR", "note": "' || repeat('x', i * 31 % 300) || '"}', 'UTF8'),
			'00-' || md5(i::text) || '-' || left(md5(i::text), 16) || '-01'
		from (select i, now() - interval '8 minutes' - make_interval(secs => 86500 * i / 5500.0 + 10000 * sin(i / 1100.0)) as t from generate_series(1, 5500) i) x`)
	do(t, pool, "update idempotency_keys set purge_after = now() - interval '19 minutes', expires_at = now() - interval '19 minutes' where id like '%77'")
	for i := range 5 {
		stop(t, pool, fmt.Sprintf("rider-%d", i%2), fmt.Sprintf("ride-%d", 4711+i))
	}
	do(t, pool, "update idempotency_operations set started_at = started_at - interval '26 hours', progressed_at = progressed_at - interval '25 hours' where id = 'ride-4713'")
	do(t, pool, "insert into idempotency_keys (id, scope, purge_after) values ('import/batch-9', 'customer-3', now() + interval '20 hours')")
	execute(t, pool, "customer-7", "charge/order-4711", map[string]any{"receipt": "re_1P4711", "amount": "20 EUR", "card": "visa", "status": "charged"})
	for i := range 4 {
		hold(t, pool, "customer-7", fmt.Sprintf("charge/order-482%d", i))
	}
	do(t, pool, "analyze idempotency_keys")
	return pool
}
