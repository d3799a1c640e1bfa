package keytable_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestSearchPathThatNamesPgCatalogBehindAnotherSchemaIsFound(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for path, want := range map[string]bool{
		"public": false, "": false, `""`: false, "pg_catalog": false, "pg_catalog, public": false, "pg_catalog, public, pg_catalog": false, `"$user", public`: false,
		"public, pg_catalog": true, `public,"pg_catalog"`: true, "public , PG_Catalog, x": true, `"pg_catalog, ", pg_catalog`: true, `pg_temp, pg_catalog`: true,
		`"a"", b", pg_catalog`: true, `"x, pg_catalog"`: false, `public, "PG_CATALOG"`: false, `missing, pg_catalog`: true, `public, "pg_""catalog"`: false,
	} {
		got, err := keytable.Shadowing(t.Context(), pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["search_path"] = path }))
		if err != nil || (got != "") != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}
