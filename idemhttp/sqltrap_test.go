package idemhttp_test

import (
	"context"
	"database/sql"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/idemhttp"
	"github.com/pgidem/idempotency/idemsql"
)

// A handler of database/sql answers 500 to an error that Do would run again. The
// watched transaction sees the error through the *sql.Tx.
func TestHandlerOfDatabaseSQLThatAnswers500RunsAgainWhenPostgreSQLAsks(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(context.Context, *bundle, *sql.Tx) error{
		"serialization failure": func(ctx context.Context, _ *bundle, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "do $$ begin raise exception using errcode = '40001'; end $$")
			return err
		},
		"serialization failure in rows": func(ctx context.Context, _ *bundle, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `create function pg_temp.conflict(g int) returns int language plpgsql as
				$$ begin if g = 5000 then raise exception using errcode = '40001'; end if; return g; end $$`)
			if err != nil {
				return err
			}
			rows, err := tx.QueryContext(ctx, "select pg_temp.conflict(g) from generate_series(1, 10000) g")
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
			}
			return rows.Err()
		},
		"lost connection": func(ctx context.Context, b *bundle, tx *sql.Tx) error {
			var pid int
			if err := tx.QueryRowContext(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
				return err
			}
			if _, err := b.pool.Exec(ctx, "select pg_terminate_backend($1, 10000)", pid); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, "select 1")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			var runs atomic.Int64
			server := b.serve(b.middleware(idemhttp.Config{}).Atomic(func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
				_, err := idemsql.Run(r.Context(), tx, func(tx *sql.Tx) (int, error) {
					_, err := tx.ExecContext(r.Context(), "insert into charges values ($1, 10)", b.account)
					if err == nil && runs.Add(1) == 1 {
						err = fault(r.Context(), b, tx)
					}
					return 0, err
				})
				if err != nil {
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				w.WriteHeader(http.StatusCreated)
			}))
			for range 2 {
				if got := b.post(server, "key-1"); got.StatusCode != http.StatusCreated {
					t.Errorf("%d %s", got.StatusCode, got.body)
				}
			}
			if n := runs.Load(); n != 2 {
				t.Errorf("%d runs", n)
			}
			b.effects(1)
		})
	}
}
