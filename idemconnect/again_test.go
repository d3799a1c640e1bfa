package idemconnect_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/idemconnect"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestConflictRunsTheHandlerAgainWhateverItMakesOfIt(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	conflict := func(ctx context.Context) error { return raise(ctx, idemconnect.Tx(ctx), "40001") }
	for name, fail := range map[string]func(ctx context.Context) error{
		"hidden in internal": func(ctx context.Context) error {
			return connect.NewError(connect.CodeInternal, errors.New(conflict(ctx).Error())) // the cause is lost
		},
		"hidden in a Final": func(ctx context.Context) error {
			_ = conflict(ctx)
			return idemconnect.Final(errors.New("x"))
		},
		"swallowed": func(ctx context.Context) error { _ = conflict(ctx); return nil },
		"as it is":  conflict,
		"not watched": func(ctx context.Context) error {
			_, err := idemconnect.Tx(ctx).Conn().Exec(ctx, `do $$ begin raise exception 'x' using errcode = '40001'; end $$`)
			return err
		},
		"through database/sql": func(ctx context.Context) error {
			_, err := idemsql.Run(ctx, idemconnect.Tx(ctx), func(tx *sql.Tx) (int, error) {
				_, err := tx.ExecContext(ctx, `do $$ begin raise exception 'x' using errcode = '40001'; end $$`)
				return 0, err
			})
			return connect.NewError(connect.CodeInternal, errors.New(err.Error()))
		},
		"a lost connection": func(ctx context.Context) error {
			var pid int
			if err := idemconnect.Tx(ctx).QueryRow(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
				t.Error(err)
			}
			if _, err := shared.pool.Exec(ctx, "select pg_terminate_backend($1, 10000)", pid); err != nil {
				t.Error(err)
			}
			_, err := idemconnect.Tx(ctx).Exec(ctx, "select 1")
			return connect.NewError(connect.CodeInternal, errors.New(err.Error()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, r *request) (*response, error) {
				if b.runs.Load() == 1 {
					if err := fail(ctx); err != nil {
						return nil, err
					}
				}
				return done(ctx, r)
			}))
			c.pay("k").is(t, 10, false)
			c.pay("k").is(t, 10, true)
			b.ran(2)
			b.effects(1)
		})
	}
}

func TestConflictThatNeverEndsIsTheHandlersOwnError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, _ *request) (*response, error) {
		_ = raise(ctx, idemconnect.Tx(ctx), "40001")
		return nil, connect.NewError(connect.CodeInternal, errors.New("no luck"))
	}))
	c.pay("k").isError(t, connect.CodeInternal, "no luck", false)
	b.ran(10)
	b.effects(0)
}

func TestLostCommitAnswerIsFoundOutByTheSameCall(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		proxy := b.proxy()
		var once atomic.Bool
		proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
			if m.FromServer && m.Tag == "COMMIT" && once.CompareAndSwap(false, true) {
				return pgproxy.Drop
			}
			return pgproxy.Pass
		})
		b.store = b.storeThrough(proxy)
		c := b.protected(idemconnect.Config{}, func(ctx context.Context, r *request) (*response, error) {
			sets(t, ctx)
			return b.charge(ctx, r)
		}, protocol)
		for range 2 {
			a := c.pay("k")
			a.is(t, 10, true)
			if len(a.header["Info-Header"]) != 1 || len(a.trailer["Info-Trailer"]) != 1 {
				t.Errorf("header %v, trailer %v", a.header, a.trailer)
			}
		}
		if !once.Load() {
			t.Error("nothing was lost")
		}
		b.ran(1)
		b.effects(1)
	})
}

func TestCommitThatFailsIsNeverASuccess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.pool.Exec(t.Context(), `alter table charges add unique (amount) deferrable initially deferred`); err != nil {
		t.Fatal(err)
	}
	c := b.protected(idemconnect.Config{}, b.charge)
	c.pay("k1").is(t, 10, false)
	c.pay("k2").isRefusal(t, connect.CodeInternal, "FAILED")
	b.effects(1)
	if !strings.Contains(b.reports(), "23505") {
		t.Errorf("reported %s", b.reports())
	}
}

func TestHandlerThatWaitsForThePoolItHasUsedUpIsReported(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.pool = pgtest.Pool(t, b.pool, pgtest.MaxConns(1), func(*pgxpool.Config) {})
	b.store = b.storeThrough(b.proxy(), pgtest.MaxConns(1))
	c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, _ *request) (*response, error) {
		held, err := b.pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		defer held.Release()
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err = b.pool.Exec(ctx, "select 1")
		return nil, err
	}))
	c.pay("k").isError(t, connect.CodeDeadlineExceeded, "context deadline exceeded", false)
	if !strings.Contains(b.reports(), "all connections of the pool are in use (MaxConns is 1)") {
		t.Errorf("reported %s", b.reports())
	}
}

// A statement that is under way when the handler returns is waited for.
func TestStatementThatAHandlerLeavesBehindIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	holder, err := b.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Release()
	if _, err := holder.Exec(t.Context(), `select pg_advisory_lock(42)`); err != nil {
		t.Fatal(err)
	}
	left, unlocked := make(chan error, 1), make(chan error, 1)
	c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, r *request) (*response, error) {
		tx := idemconnect.Tx(ctx)
		go func() {
			_, err := tx.Exec(context.WithoutCancel(ctx), `select pg_advisory_xact_lock(42)`)
			left <- err
		}()
		for waits := false; !waits; {
			err := b.pool.QueryRow(ctx, `select count(*) > 0 from pg_locks join pg_database on pg_database.oid = database
				where datname = current_database() and locktype = 'advisory' and objid = 42 and not granted`).Scan(&waits)
			if err != nil {
				return nil, err
			}
		}
		time.AfterFunc(100*time.Millisecond, func() { // when the handler has returned
			_, err := holder.Exec(context.Background(), `select pg_advisory_unlock(42)`)
			unlocked <- err
		})
		return done(ctx, r)
	}))
	c.pay("k").is(t, 10, false)
	if err := errors.Join(<-unlocked, <-left); err != nil {
		t.Errorf("the statement has failed: %v", err)
	}
	b.effects(1)
}
