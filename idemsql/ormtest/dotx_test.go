package ormtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A caller is a program that begins its transactions itself.
type caller struct {
	*bundle
	own    *sql.DB
	isPgx  bool
	events []idempotency.Event
}

// drivers are those of the callers: pgx's stdlib, in two query exec modes, and lib/pq.
var drivers = []struct {
	name string
	open func(b *bundle) *sql.DB
}{
	{"pgx", func(b *bundle) *sql.DB { return stdlib.OpenDBFromPool(b.pool) }},
	{"pgx, simple protocol", func(b *bundle) *sql.DB {
		return stdlib.OpenDBFromPool(pgtest.Pool(b, b.pool, func(cfg *pgxpool.Config) {
			cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		}))
	}},
	{"lib/pq", func(b *bundle) *sql.DB {
		server := b.pool.Config().ConnConfig
		db, err := sql.Open("postgres", fmt.Sprintf("host='%s' port=%d user='%s' password='%s' dbname='%s' sslmode=disable",
			server.Host, server.Port, server.User, server.Password, server.Database))
		if err != nil {
			b.Fatal(err)
		}
		return db
	}},
}

// withEachDriver runs a test with each driver, one after the other in one database.
func withEachDriver(t *testing.T, test func(c *caller)) {
	t.Parallel()
	b := setup(t)
	for _, driver := range drivers {
		t.Run(driver.name, func(t *testing.T) {
			b := &bundle{TB: t, pool: b.pool, db: b.db, key: b.key}
			b.exec("truncate charges, idempotency_keys")
			c := &caller{bundle: b, own: driver.open(b), isPgx: driver.name != "lib/pq"}
			t.Cleanup(func() { c.own.Close() })
			store, err := idempotency.NewWithConfig(b.pool, idempotency.Config{
				Wait:    -1,
				Trace:   func(ctx context.Context, _ string) (context.Context, string) { return ctx, "the origin" },
				Observe: func(_ context.Context, e idempotency.Event) { c.events = append(c.events, e) },
			})
			if err != nil {
				t.Fatal(err)
			}
			b.store = store
			test(c)
		})
	}
}

// in is a transaction of the caller's, which is committed if fn returns nil.
func (c *caller) in(fn func(tx *sql.Tx) error) error {
	tx, err := c.own.BeginTx(c.Context(), nil)
	if err != nil {
		c.Fatal(err)
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func (c *caller) doTx(tx *sql.Tx, fn function) (Charge, bool, error) {
	return idemsql.DoTx(c.Context(), c.store, tx, c.key, fn)
}

func insert(ctx context.Context, tx *sql.Tx, account string) (c Charge, err error) {
	c = Charge{Account: account, Cents: 1000}
	err = tx.QueryRowContext(ctx, "insert into charges (account, cents) values ($1, $2) returning id", c.Account, c.Cents).Scan(&c.ID)
	return c, err
}

func alice(ctx context.Context, tx *sql.Tx) (Charge, error) { return insert(ctx, tx, "alice") }

// usable expects that tx can still be used, and writes into it.
func (c *caller) usable(tx *sql.Tx) {
	c.Helper()
	if _, err := insert(c.Context(), tx, "the caller"); err != nil {
		c.Errorf("the transaction is not usable: %v", err)
	}
}

// records expects so many of the key, in whatever state.
func (c *caller) records(want int) {
	c.Helper()
	var got int
	if err := c.pool.QueryRow(c.Context(), "select count(*) from idempotency_keys").Scan(&got); err != nil || got != want {
		c.Errorf("%d records, want %d, %v", got, want, err)
	}
	var empty int // no fingerprint is null, in no space
	if err := c.pool.QueryRow(c.Context(), "select count(*) from idempotency_keys where fingerprint = ''").Scan(&empty); err != nil || empty > 0 {
		c.Errorf("%d empty fingerprints, %v", empty, err)
	}
}

func TestDoTxBecomesDurableWithTheCallersCommit(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		c.key.Fingerprint = idempotency.FingerprintOf([]byte("10 EUR"))
		var first Charge
		for i := range 3 {
			if err := c.in(func(tx *sql.Tx) error {
				charge, replayed, err := c.doTx(tx, alice)
				if replayed != (i > 0) || i > 0 && charge != first {
					t.Errorf("call %d: %+v, replayed %v, %v", i, charge, replayed, err)
				}
				first = charge
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		c.charges(1)
		// What is stored is what a call of pgx stores and reads.
		if charge, replayed, err := c.do(alice); charge != first || !replayed || err != nil {
			t.Errorf("Do: %+v, replayed %v, %v", charge, replayed, err)
		}
		rec, err := c.store.Get(t.Context(), c.key)
		if err != nil || rec.Origin != "the origin" || time.Until(rec.ExpiresAt) < 23*time.Hour || time.Until(rec.ExpiresAt) > 25*time.Hour {
			t.Errorf("%+v, %v", rec, err)
		}
		if got := c.events[0]; got.Operation != "DoTx" || got.Outcome != "executed" {
			t.Errorf("%+v", got)
		}
	})
}

func TestDoTxReplaysWhatDoHasRecorded(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		first, _, err := c.do(alice)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.in(func(tx *sql.Tx) error {
			charge, replayed, err := c.doTx(tx, alice)
			if charge != first || !replayed {
				t.Errorf("%+v, replayed %v", charge, replayed)
			}
			c.usable(tx)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		c.charges(2)
	})
}

func TestDoTxVanishesWithTheCallersRollback(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		err := c.in(func(tx *sql.Tx) error {
			_, _, err := c.doTx(tx, alice)
			return errors.Join(err, errUndo)
		})
		if !errors.Is(err, errUndo) {
			t.Fatal(err)
		}
		c.charges(0)
		c.records(0)
	})
}

func TestTransactionIsUsableAfterAnErrorOfDoTx(t *testing.T) {
	fails := errors.New("declined")
	for name, c := range map[string]struct {
		prepare func(*caller)
		fn      function
		want    error // nil: any
		says    string
	}{
		"the function's own error": {fn: func(ctx context.Context, tx *sql.Tx) (Charge, error) {
			c, _ := alice(ctx, tx)
			return c, fails
		}, want: fails},
		"an error of SQL": {fn: func(ctx context.Context, tx *sql.Tx) (Charge, error) {
			c, _ := alice(ctx, tx)
			_, err := tx.ExecContext(ctx, "select 1/0")
			return c, err
		}, says: "division by zero"},
		"a swallowed error of SQL": {fn: func(ctx context.Context, tx *sql.Tx) (Charge, error) {
			c, err := alice(ctx, tx)
			_, _ = tx.ExecContext(ctx, "select 1/0")
			return c, err
		}, want: pgx.ErrTxCommitRollback},
		"a transaction that is made read-only": {fn: func(ctx context.Context, tx *sql.Tx) (Charge, error) {
			c, err := alice(ctx, tx)
			if err != nil {
				return c, err
			}
			_, err = tx.ExecContext(ctx, "set local transaction_read_only = on")
			return c, err
		}, says: "has made its transaction read-only"},
		"a reused key": {prepare: func(c *caller) {
			other := c.key
			c.key.Fingerprint = idempotency.FingerprintOf([]byte("other"))
			if _, _, err := c.do(func(context.Context, *sql.Tx) (Charge, error) { return Charge{}, nil }); err != nil {
				c.Fatal(err)
			}
			c.key = other
		}, want: idempotency.ErrKeyReused},
		"an invalid key": {prepare: func(c *caller) { c.key.ID = "" }, want: idempotency.ErrInvalidKey},
		"an unfinished key": {prepare: func(c *caller) {
			c.exec("insert into idempotency_keys (id, scope, purge_after) values ('order-1', 'alice', now())")
		}, want: idempotency.ErrAbandoned},
		"no table": {prepare: func(c *caller) {
			c.exec("alter table idempotency_keys rename to gone")
			c.Cleanup(func() { c.exec("alter table gone rename to idempotency_keys") })
		}, says: "run migrations.Up"},
		"a value not stored": {fn: func(ctx context.Context, tx *sql.Tx) (Charge, error) {
			c, err := alice(ctx, tx)
			c.Account = strings.Repeat("x", 2<<20)
			return c, err
		}, want: idempotency.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			withEachDriver(t, func(b *caller) {
				if c.prepare != nil {
					c.prepare(b)
				}
				if err := b.in(func(tx *sql.Tx) error {
					b.usable(tx)
					_, _, err := b.doTx(tx, c.fn)
					if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
						b.Errorf("got %v", err)
					}
					b.usable(tx)
					return nil
				}); err != nil {
					b.Error(err)
				}
				b.charges(2)
			})
		})
	}
}

func TestTransactionIsUsableAfterAPanicInDoTx(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		err := c.in(func(tx *sql.Tx) error {
			func() {
				defer func() {
					if v := recover(); v != "boom" {
						t.Errorf("recovered %v", v)
					}
				}()
				_, _, _ = c.doTx(tx, func(ctx context.Context, tx *sql.Tx) (Charge, error) {
					_, _ = alice(ctx, tx)
					panic("boom")
				})
			}()
			c.usable(tx)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		c.charges(1)
		c.records(0)
	})
}

func TestKeyInFlightElsewhereLeavesTheTransactionUsable(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		err := c.in(func(holder *sql.Tx) error {
			if _, _, err := c.doTx(holder, alice); err != nil {
				return err
			}
			return c.in(func(tx *sql.Tx) error {
				_, _, err := c.doTx(tx, alice)
				if !errors.Is(err, idempotency.ErrInProgress) {
					t.Errorf("got %v", err)
				}
				c.usable(tx)
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
		c.charges(2)
		c.records(1)
	})
}

func TestRowsLeftOpenInDoTxMakeTheCallersCommitFail(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		err := c.in(func(tx *sql.Tx) error {
			c.usable(tx)
			_, _, err := c.doTx(tx, func(ctx context.Context, tx *sql.Tx) (Charge, error) {
				charge, err := alice(ctx, tx)
				if err != nil {
					return charge, err
				}
				rows, err := tx.QueryContext(ctx, "select generate_series(1, 100000)")
				if err == nil {
					rows.Next()
				}
				return charge, err
			})
			if err == nil {
				t.Error("DoTx returned nil")
			}
			return nil
		})
		if err == nil {
			t.Error("Commit returned nil")
		}
		c.charges(0)
		c.records(0)
	})
}

func TestFunctionThatEndsTheCallersTransactionIsFound(t *testing.T) {
	for name, end := range map[string]func(context.Context, *sql.Tx) error{
		"Commit":   func(_ context.Context, tx *sql.Tx) error { return tx.Commit() },
		"Rollback": func(_ context.Context, tx *sql.Tx) error { return tx.Rollback() },
		"SQL": func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "commit; begin")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			withEachDriver(t, func(c *caller) {
				_ = c.in(func(tx *sql.Tx) error {
					_, _, err := c.doTx(tx, func(ctx context.Context, tx *sql.Tx) (Charge, error) {
						charge, err := alice(ctx, tx)
						return charge, errors.Join(err, end(ctx, tx))
					})
					if !errors.Is(err, idempotency.ErrOutcomeUnknown) {
						t.Errorf("got %v", err)
					}
					return err
				})
				if _, _, err := c.do(alice); name == "Rollback" != (err == nil) {
					t.Errorf("the next call: %v", err)
				}
			})
		})
	}
}

func TestDoTxInsideDoTx(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		for range 2 {
			if err := c.in(func(tx *sql.Tx) error {
				_, _, err := c.doTx(tx, func(ctx context.Context, tx *sql.Tx) (Charge, error) {
					inner := c.key
					inner.ID = "order-2"
					failed := c.key
					failed.ID = "order-3"
					_, _, err := idemsql.DoTx(ctx, c.store, tx, failed, func(ctx context.Context, tx *sql.Tx) (Charge, error) {
						charge, _ := alice(ctx, tx)
						return charge, errUndo
					})
					if !errors.Is(err, errUndo) {
						return Charge{}, err
					}
					_, _, err = idemsql.DoTx(ctx, c.store, tx, c.key, alice)
					if !errors.Is(err, idempotency.ErrInProgress) {
						t.Errorf("its own key: %v", err)
					}
					charge, _, err := idemsql.DoTx(ctx, c.store, tx, inner, alice)
					return charge, err
				})
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		c.charges(1)
		c.records(2)
	})
}

func TestEndedContextDoesNotKeepANilErrorFromBeingRecordedByDoTx(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		err := c.in(func(tx *sql.Tx) error {
			ctx, cancel := context.WithCancel(c.Context())
			_, _, err := idemsql.DoTx(ctx, c.store, tx, c.key, func(ctx context.Context, tx *sql.Tx) (Charge, error) {
				charge, err := alice(ctx, tx)
				cancel()
				return charge, err
			})
			return err
		})
		if err != nil {
			t.Error(err)
		}
		c.charges(1)
		c.records(1)
	})
}

func TestEndOfTheContextOfBeginTxLeavesNothing(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		ctx, cancel := context.WithCancel(c.Context())
		tx, err := c.own.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = c.doTx(tx, func(ctx context.Context, tx *sql.Tx) (Charge, error) {
			charge, err := alice(ctx, tx)
			cancel()
			for end := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(end); {
				if _, gone := tx.ExecContext(context.WithoutCancel(ctx), "select 1"); gone != nil {
					break
				}
			}
			return charge, err
		})
		if err == nil {
			t.Error("DoTx returned nil")
		}
		if err := tx.Commit(); err == nil {
			t.Error("Commit returned nil")
		}
		c.charges(0)
		c.records(0)
	})
}

func TestErrorsOfTheDriverComeBackForTheCallersRetries(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		conflict := func(ctx context.Context, tx *sql.Tx) (Charge, error) {
			_, err := tx.ExecContext(ctx, "do $$ begin raise exception using errcode = '40001'; end $$")
			return Charge{}, err
		}
		_ = c.in(func(tx *sql.Tx) error {
			_, _, err := c.doTx(tx, conflict)
			c.wantCode(err, "40001")
			return err
		})
		// And an error of a statement of ours: the key was taken after this snapshot.
		tx, err := c.own.BeginTx(c.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		c.usable(tx)
		if _, _, err := c.do(alice); err != nil {
			t.Fatal(err)
		}
		_, _, err = c.doTx(tx, alice)
		c.wantCode(err, "40001")
		if _, ok := errors.AsType[*pgconn.PgError](err); !ok {
			t.Errorf("no PgError in %v", err)
		}
	})
}

func (c *caller) wantCode(err error, want string) {
	c.Helper()
	var code string
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && c.isPgx {
		code = pgErr.Code
	}
	if pqErr, ok := errors.AsType[*pq.Error](err); ok && !c.isPgx {
		code = string(pqErr.Code)
	}
	if code != want {
		c.Errorf("got %v, want an error of the driver with %s", err, want)
	}
}

func TestExpiredKeyIsTakenOverByDoTx(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		if _, _, err := c.do(alice); err != nil {
			t.Fatal(err)
		}
		c.exec("update idempotency_keys set expires_at = now() - interval '1 second', purge_after = now() - interval '1 second'")
		for i := range 2 {
			if err := c.in(func(tx *sql.Tx) error {
				_, replayed, err := c.doTx(tx, alice)
				if replayed != (i > 0) {
					t.Errorf("call %d: replayed %v", i, replayed)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		c.charges(2)
	})
}

func TestNothingIsExecutedInATransactionThatHasEnded(t *testing.T) {
	withEachDriver(t, func(c *caller) {
		tx, err := c.own.BeginTx(c.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		_, _, err = c.doTx(tx, func(context.Context, *sql.Tx) (Charge, error) {
			t.Error("the function was run")
			return Charge{}, nil
		})
		if !errors.Is(err, sql.ErrTxDone) || errors.Is(err, idempotency.ErrOutcomeUnknown) {
			t.Errorf("got %v", err)
		}
	})
}
