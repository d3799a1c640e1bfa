package idempotency_test

import (
	"context"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A new connection costs the server far more than the rest of an answer: clients
// that cancel in a loop must not make it connect in a loop.
func TestContextThatEndsBeforeTheAnswerOfAStatementOfOursKeepsTheConnection(t *testing.T) {
	t.Parallel()
	claim, read := claimText, "select fingerprint"
	for name, c := range map[string]struct {
		statement string
		recorded  bool
		call      func(context.Context, *bundle, pgx.Tx) error
		want      error
	}{
		"Do of a new key": {claim, false, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, _, err := idempotency.Do(ctx, b.store, b.key, func(context.Context, pgx.Tx) (int, error) {
				b.Error("the function was run")
				return 1, nil
			})
			return err
		}, context.Canceled},
		"Do that replays": {claim, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			b.unknown()
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
			return err
		}, nil},
		"Do of a known key": {claimReadText, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
			return err
		}, nil},
		"Do that replays what this process has recorded": {read, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
			return err
		}, nil},
		"DoTx of a new key": {claim, false, func(ctx context.Context, b *bundle, tx pgx.Tx) error {
			_, _, err := idempotency.DoTx(ctx, b.store, tx, b.key, func(context.Context, pgx.Tx) (int, error) {
				b.Error("the function was run")
				return 1, nil
			})
			return err
		}, context.Canceled},
		"DoTx that replays": {claim, true, func(ctx context.Context, b *bundle, tx pgx.Tx) error {
			_, _, err := idempotency.DoTx(ctx, b.store, tx, b.key, charge(b.key.ID, 1))
			return err
		}, nil},
		"Get": {read, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, err := b.store.Get(ctx, b.key)
			return err
		}, nil},
		"All": {read, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			for _, err := range b.store.All(ctx, b.key.Scope) {
				return err
			}
			return idempotency.ErrNotFound
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			if c.recorded {
				b.executes(1)
			}
			store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(2)) // one is DoTx's
			b.store = store
			tx, err := idempotency.PoolOf(store).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			if err := idempotency.PoolOf(store).Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				proxy.SetRule(nil)
				b.store = b.storeOn(idempotency.PoolOf(store), idempotency.Config{}) // which knows no key
				if strings.Contains(name, "this process") {
					b.replays(1)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				asked := bound(c.statement)
				proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
					if asked(m) {
						cancel()
						time.Sleep(5 * time.Millisecond) // pgx has noticed
					}
					return pgproxy.Pass
				})
				err := c.call(ctx, b, tx)
				if ctx.Err() == nil {
					t.Fatal("the statement was not seen")
				}
				b.wantErr(err, c.want)
			}
			proxy.SetRule(nil)
			time.Sleep(2 * idempotency.ClaimGrace) // the deadlines have passed
			if _, err := tx.Exec(t.Context(), "select 1"); err != nil {
				t.Errorf("the caller's transaction is not usable: %v", err)
			}
			if n := idempotency.PoolOf(store).Stat().NewConnsCount(); n != 2 {
				t.Errorf("%d connections were made, want 2", n)
			}
			if !c.recorded {
				b.effects(0)
				b.executes(1)
			}
		})
	}
}

// A lock on the table can last for hours.
func TestContextThatEndsWhileAStatementOfOursHangsIsHonoured(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(context.Context, *bundle, pgx.Tx) error{
		"Do": func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
			return err
		},
		"DoTx": func(ctx context.Context, b *bundle, tx pgx.Tx) error {
			_, _, err := idempotency.DoTx(ctx, b.store, tx, b.key, charge(b.key.ID, 1))
			return err
		},
		"Get": func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, err := b.store.Get(ctx, b.key)
			return err
		},
	} {
		for _, want := range []error{context.Canceled, context.DeadlineExceeded} {
			t.Run(name+", "+want.Error(), func(t *testing.T) {
				t.Parallel()
				b := setup(t, idempotency.Config{})
				lock := b.begin(pgx.TxOptions{})
				if _, err := lock.Exec(t.Context(), "lock table idempotency_keys"); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				if want == context.DeadlineExceeded {
					ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
				} else {
					time.AfterFunc(50*time.Millisecond, cancel)
				}
				defer cancel()
				ended := make(chan error, 1)
				tx := b.begin(pgx.TxOptions{})
				go func() { ended <- call(ctx, b, tx) }()
				select {
				case err := <-ended:
					b.wantErr(err, want)
				case <-time.After(10 * time.Second):
					t.Error("the call still waits")
				}
				if err := lock.Rollback(context.Background()); err != nil {
					t.Fatal(err)
				}
				b.effects(0)
				b.executes(1)
			})
		}
	}
}

// The end of the context can be noticed when the connection has gone to somebody else.
func TestGraceThatBeginsTooLateLeavesTheConnectionAlone(t *testing.T) {
	t.Parallel()
	wire, far := net.Pipe()
	idempotency.EndedGrace(wire)()
	time.Sleep(2 * idempotency.ClaimGrace)
	go far.Write([]byte("x"))
	if _, err := wire.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// Not parallel: it counts goroutines.
func TestGraceLeavesNoGoroutineBehind(t *testing.T) {
	b := setup(t, idempotency.Config{})
	b.executes(1)
	before := runtime.NumGoroutine()
	for i := range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		if i%2 == 0 {
			cancel()
		}
		_, _, _ = idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
		cancel()
	}
	b.eventually("the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before+2 })
}
