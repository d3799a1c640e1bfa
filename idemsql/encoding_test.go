package idemsql_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A *sql.Tx does not show its connection: the server is asked, for a key beyond ASCII.
func TestKeyThatTheConnectionOfATransactionWouldChangeIsErrInvalidKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for client, invalid := range map[string]bool{"SJIS": true, "UTF8": false} {
		db := stdlib.OpenDBFromPool(pgtest.Pool(t, b.pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["client_encoding"] = client }))
		defer db.Close()
		for _, key := range []idempotency.Key{{Scope: "お㇜", ID: "i"}, {Scope: "s", ID: "お㇜"}, {Scope: "s", ID: client}} {
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = idemsql.DoTx(t.Context(), b.store, tx, key, func(context.Context, *sql.Tx) (int, error) { return 1, nil })
			if refused := invalid && key.ID != client; refused {
				b.wantErr(err, idempotency.ErrInvalidKey)
			} else if err != nil {
				t.Errorf("%s, %v: %v", client, key, err)
			}
			if err := tx.Commit(); err != nil { // it is usable
				t.Errorf("%s, %v: %v", client, key, err)
			}
		}
	}
}
