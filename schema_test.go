package idempotency_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/migrations"
)

// In such a session a backslash escapes the quote behind it, and what follows would
// be SQL.
func TestNameOfASchemaIsNeverSQL(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{`x\'y`, `x\`, `\' or '1'='1`, `it's "odd"`} {
		b := setup(t, idempotency.Config{})
		if err := migrations.Up(t.Context(), b.pool, schema); err != nil {
			t.Errorf("%s: Up: %v", schema, err)
			continue
		}
		for _, conforming := range []string{"on", "off"} {
			if conforming == "off" && b.pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
				continue // pgx refuses that itself
			}
			b.key.ID = "with " + conforming
			b.store = b.storeOn(b.anotherPool(param("standard_conforming_strings", conforming)), idempotency.Config{Schema: schema})
			for _, want := range []bool{false, true} {
				got, replayed, err := b.do(charge(b.key.ID, 1))
				if got != 1 || replayed != want || err != nil {
					t.Errorf("%s, %s: Do = %v, %v, %v", schema, conforming, got, replayed, err)
				}
			}
			if _, err := b.store.Get(t.Context(), b.key); err != nil {
				t.Errorf("%s, %s: %v", schema, conforming, err)
			}
			if err := b.store.Delete(t.Context(), b.key); err != nil {
				t.Errorf("%s, %s: %v", schema, conforming, err)
			}
		}
	}
}
