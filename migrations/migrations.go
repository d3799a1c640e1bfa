// Package migrations creates, upgrades and removes the tables of package
// idempotency, in any schema of a PostgreSQL database: idempotency_keys, and
// idempotency_operations, which only procedures use.
//
// Run [Up] before the first call, and before each new release of the package: in
// the program when it starts, whose role then owns the tables, or in a deployment
// before the program starts, whose role then needs far fewer privileges
// (docs/operations.md lists them). Up may be called any number of times, by any
// number of processes at once, and after a crash it goes on where the last run
// stopped. To run the same SQL with another tool, use [FS].
//
// Up and Down lock with a session-level advisory lock, so connect them to
// PostgreSQL itself and not to PgBouncer in transaction mode, which would lend
// one session to several clients.
package migrations

import (
	"context"
	"embed"

	"github.com/jackc/pgx/v5/pgxpool"
)

// FS holds the migrations as files named 0001_title.up.sql and
// 0001_title.down.sql, each of one statement that can be applied twice. Their
// names are unqualified: the first schema of the search_path receives them.
//
//   - golang-migrate: iofs.New(migrations.FS, ".")
//   - Atlas: copy the files and name the format, "file://DIR?format=golang-migrate"
//   - goose and others: put the text of the .up.sql files, in the order of their
//     numbers, into a migration of your own; "idempotency migrate sql" prints it
//   - psql: idempotency migrate sql | psql
//
// They do not look at what they find under the names of the tables, as Up does: let only
// trusted roles create in the schema.
//
// Such a tool keeps its own record: Version reports 0 then, Down does nothing,
// and Up applies every file once more, which changes nothing.
//
//go:embed *.sql
var FS embed.FS

// Up brings the tables to the newest version this package knows. When it returns
// nil, they are there and have the columns and the indexes that package
// idempotency needs. A database that is up to date is only read, so a role that
// may create nothing can call Up too. It needs usage of the schema, and select on
// idempotency_migrations. To change anything, Up needs the owner of the tables,
// who may create in the schema.
//
// The tables and a record of the version, idempotency_migrations, are made in
// schema, which may have any name and is created when it is missing. The empty
// string means the first existing schema in the connection's search_path.
//
// Up opens one connection of its own with the pool's configuration, including
// BeforeConnect but not AfterConnect, and closes it at the end: the pool may be
// in full use. It waits for others who migrate the same schema, without a bound
// but ctx. The connection's statement_timeout and lock_timeout apply to each
// statement.
//
// An error names the migration that failed and what to do, or the privilege that
// the role lacks, and wraps the server's [pgconn.PgError]. A cancelled call ends at
// once and returns an error that wraps ctx.Err(). Neither that nor a crash needs
// repair: call Up again. A table idempotency_keys or idempotency_operations made by
// another program, or an index idempotency_keys_purge_after on another table, is an error
// and stays untouched, before anything is made. So is
// a table that obeys a stranger, who would get the rights of the current role: it, or a
// function behind a trigger on it for example, belongs to a role that is no superuser
// and that the current one is no member of. A superuser is taken for a member of none.
// Where there is nothing to change, the owner of the schema or of the database is no
// stranger. The error names the role to connect as. A version newer than this
// package knows is no error, so that an old release can start beside a new one.
// Whatever the connection's search_path is, nothing in it can get this role's rights.
//
// [pgconn.PgError]: https://pkg.go.dev/github.com/jackc/pgx/v5/pgconn#PgError
func Up(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	return within(ctx, pool, schema, (*session).up)
}

// Down removes what Up made, and with it every recorded result: calls that were
// made before will run again. The schema itself stays, and so does an index on another
// table. A table that Up did not make is an error if the record of the version says that
// Up has made it, and else stays. With nothing to remove, Down does nothing and returns
// nil.
//
// It connects, waits, reports and recovers as Up does. A version newer than this
// package knows is an error, since only that release knows how to undo it.
func Down(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	return within(ctx, pool, schema, (*session).down)
}

// Version returns the number of the last migration that is known to be applied
// whole: 0 before the first Up, and one less than the newest after an Up that
// was cut short in the last. It only reads, takes no lock and needs no more than
// the right to select from idempotency_migrations. It reads nothing else: whether the
// tables are still there, Up says.
func Version(ctx context.Context, pool *pgxpool.Pool, schema string) (version uint, err error) {
	err = within(ctx, pool, schema, func(s *session, ctx context.Context) error {
		at, err := s.state(ctx)
		version = at.applied()
		return err
	})
	return version, err
}
