package main_test

import (
	"testing"

	"github.com/pgidem/idempotency/internal/pgtest"
)

// Where client_encoding is SJIS, PostgreSQL takes the UTF-8 of both scopes for the same text.
func TestKeyIsNotTakenForAnotherWhereTheDatabaseSetsClientEncoding(t *testing.T) {
	t.Parallel()
	pool := pgtest.Encoded(t, "UTF8")
	execute(t, pool, "おま", "i", 1)
	do(t, pool, "alter database "+pool.Config().ConnConfig.Database+" set client_encoding = 'SJIS'")
	run(t, on(pool), "get", "お㇜", "i").wantLine(t, 3, "no record")
	run(t, on(pool), "delete", "-yes", "お㇜", "i").wantLine(t, 3, "no record")
	run(t, on(pool), "get", "おま", "i").wantAll(t, 0, "おま")
	run(t, on(pool), "list").wantAll(t, 0, "おま")
	run(t, on(pool), "delete", "-yes", "おま", "i").wantAll(t, 0, "deleted")
}
