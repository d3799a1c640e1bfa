package migrations_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/golang-migrate/migrate/v4"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

// Up, Down and the recovery rest on this.
func TestFilesAreNumberedFromOneInPairs(t *testing.T) {
	t.Parallel()
	for i, name := range files(t) {
		if prefix := fmt.Sprintf("%04d_", i+1); !strings.HasPrefix(name, prefix) {
			t.Errorf("%s does not begin with %s", name, prefix)
		}
		read(t, strings.Replace(name, ".up.", ".down.", 1))
	}
	all, err := fs.ReadDir(migrations.FS, ".")
	if err != nil || len(all) != 2*len(files(t)) {
		t.Errorf("%d files, %v", len(all), err)
	}
}

// A second statement would make a file that fails half-way; without the
// semicolon, the files could not be given to psql as one.
func TestEachFileIsOneStatementWithSemicolon(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, name := range everyFile(t) {
		text := read(t, name)
		if !strings.HasSuffix(text, ";\n") {
			t.Errorf("%s does not end with a semicolon and a newline", name)
		}
		// The extended protocol takes one statement only.
		result := conn.Conn().PgConn().ExecParams(t.Context(), text, nil, nil, nil, nil).Read()
		if result.Err != nil {
			t.Errorf("%s: %v", name, result.Err)
		}
	}
}

// What was interrupted may or may not have happened, and is run again.
func TestEachFileCanBeAppliedTwice(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, name := range everyFile(t) {
		do(t, pool, read(t, name))
		before := catalog(t, pool, "public")
		do(t, pool, read(t, name))
		if after := catalog(t, pool, "public"); after != before {
			t.Errorf("%s, again, made of\n%s\nthis:\n%s", name, before, after)
		}
	}
	wantNothing(t, pool, "public")
}

func TestPlainGolangMigrateAppliesTheFiles(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	src, err := iofs.New(migrations.FS, ".")
	if err != nil {
		t.Fatal(err)
	}
	drv, err := migratepgx.WithInstance(stdlib.OpenDBFromPool(pool), &migratepgx.Config{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := migrate.NewWithInstance("iofs", src, "pgx5", drv)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Up(); err != nil {
		t.Fatal(err)
	}
	if got, want := catalog(t, pool, "public"), catalog(t, pool, reference(t, pool)); got != want {
		t.Errorf("made\n%s\nwant\n%s", got, want)
	}
	wantVersion(t, pool, "", 0) // it is not our record
	up(t, pool, "")
	wantWhole(t, pool, "public")
	down(t, pool, "")
	if err := m.Down(); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, pool, "public")
}

// Ours is golang-migrate's own record under another name.
func TestPlainGolangMigrateReadsOurRecord(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	src, err := iofs.New(migrations.FS, ".")
	if err != nil {
		t.Fatal(err)
	}
	drv, err := migratepgx.WithInstance(stdlib.OpenDBFromPool(pool), &migratepgx.Config{MigrationsTable: "idempotency_migrations"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := migrate.NewWithInstance("iofs", src, "pgx5", drv)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if version, dirty, err := m.Version(); version != uint(len(files(t))) || dirty || err != nil {
		t.Error(version, dirty, err)
	}
	if err := m.Up(); !errors.Is(err, migrate.ErrNoChange) {
		t.Error(err)
	}
}

// everyFile lists the files in an order in which they can be applied.
func everyFile(t *testing.T) (names []string) {
	t.Helper()
	up := files(t)
	names = append(names, up...)
	for i := range up {
		names = append(names, strings.Replace(up[len(up)-1-i], ".up.", ".down.", 1))
	}
	return names
}
