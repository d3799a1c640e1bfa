package ormtest

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"gorm.io/gorm"
)

// A recorder is a test whose failures are kept.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper()           {}
func (r *recorder) Failed() bool      { return len(r.failures) > 0 }
func (r *recorder) Error(args ...any) { r.failures = append(r.failures, fmt.Sprint(args...)) }

// nextLine is the line behind its caller's, as a report names it.
func nextLine() string {
	_, file, line, _ := runtime.Caller(1)
	return fmt.Sprintf("ormtest/%s:%d", filepath.Base(file), line+1)
}

func TestGuardFindsAnORMOutsideTheTransaction(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(ctx context.Context, b *bundle, line *string) error{
		"gorm": func(ctx context.Context, b *bundle, line *string) error {
			db := b.gormDB(gorm.Config{})
			*line = nextLine()
			return db.WithContext(ctx).Create(&Charge{Account: "alice"}).Error
		},
		"bun": func(ctx context.Context, b *bundle, line *string) error {
			db := bun.NewDB(b.db, pgdialect.New())
			*line = nextLine()
			_, err := db.NewInsert().Model(&Charge{Account: "alice"}).Exec(ctx)
			return err
		},
		"database/sql": func(ctx context.Context, b *bundle, line *string) error {
			*line = nextLine()
			_, err := b.db.ExecContext(ctx, "insert into charges (account, cents) values ('alice', 1)")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			r := &recorder{TB: t}
			pool := pgtest.Pool(t, b.pool, func(cfg *pgxpool.Config) { idemtest.Guard(r, cfg) })
			b.db = stdlib.OpenDBFromPool(pool)
			defer b.db.Close()
			b.store = idempotency.New(pool)
			var line string
			_, _, err := b.do(func(ctx context.Context, _ *sql.Tx) (Charge, error) { return Charge{}, use(ctx, b, &line) })
			if err == nil || len(r.failures) != 1 || !strings.Contains(r.failures[0], line) {
				t.Errorf("%v, want a report of %s, got %q", err, line, r.failures)
			}
			b.charges(0)
		})
	}
}

func TestStormFindsNothingInAServiceWithGORM(t *testing.T) {
	t.Parallel()
	b := setup(t)
	idemtest.Storm(t, b.pool, 20, idemtest.Program{
		Start: func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
			program := &bundle{TB: t, pool: pool, db: stdlib.OpenDBFromPool(pool)}
			t.Cleanup(func() { program.db.Close() })
			db := program.gormDB(gorm.Config{})
			return func(ctx context.Context, id string) (any, bool, error) {
				return idempotency.Do(ctx, store, idempotency.Key{Scope: "alice", ID: id}, idemsql.Func(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
					charge := Charge{Account: id, Cents: 1000}
					err := within(ctx, db, tx).Create(&charge).Error
					return charge, err
				}))
			}
		},
		Effects: func(ctx context.Context, pool *pgxpool.Pool, id string) (n int, err error) {
			err = pool.QueryRow(ctx, "select count(*) from charges where account = $1", id).Scan(&n)
			return n, err
		},
	})
}
