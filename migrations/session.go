package migrations

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
)

// versionTable is ours alone: golang-migrate's default name, schema_migrations,
// would collide with an application that runs golang-migrate itself.
const versionTable = keytable.Migrations

// A session is the one connection on which a call does all its work, and which
// ends with the call. What the call holds on the server, the lock above all,
// ends with the connection, however the call ended.
type session struct {
	conn     *stdlib.Conn
	db       *sql.DB // golang-migrate's view of conn, once driver has made it
	database string
	schema   string
	later    []string // the other schemas of the search_path, where it is that which names ours
	role     string   // as whom it acts
}

func within(ctx context.Context, pool *pgxpool.Pool, schema string, do func(*session, context.Context) error) error {
	s, err := open(ctx, pool)
	if err == nil {
		defer s.close(ctx)
		if err = s.enter(ctx, schema); err == nil {
			err = do(s, ctx)
		}
	}
	return named(ctx, err)
}

// named gives err its package's name, and ctx.Err() where a layer below dropped
// it: database/sql replaces it with ErrBadConn.
func named(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		return fmt.Errorf("idempotency/migrations: %w (%w)", err, ctx.Err())
	default:
		return fmt.Errorf("idempotency/migrations: %w", err)
	}
}

// open connects as the pool would, but beside it: a migration must not wait for
// a connection that the application holds.
func open(ctx context.Context, pool *pgxpool.Pool) (*session, error) {
	cfg := pool.Config()
	var opts []stdlib.OptionOpenDB
	if cfg.BeforeConnect != nil { // it may fetch the password
		opts = append(opts, stdlib.OptionBeforeConnect(cfg.BeforeConnect))
	}
	// golang-migrate passes text where the server wants a bigint, so the types
	// have to come from the server, in whatever mode the pool is. Statements are
	// prepared once: keytable's look at a table, which Up takes a dozen times, is
	// parsed and planned for longer than it runs.
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	cfg.ConnConfig.StatementCacheCapacity = 64 // the pool's can be 0, for a pooler
	conn, err := stdlib.GetConnector(*cfg.ConnConfig, opts...).Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to the database: %w", err)
	}
	return &session{conn: conn.(*stdlib.Conn)}, nil
}

// close returns when the server has let go of the session, or after a second.
func (s *session) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = s.pgx().Close(ctx)
	if s.db != nil {
		_ = s.db.Close() // ends its goroutine
	}
	select { // pgx cancels an interrupted statement in the background
	case <-s.pgx().PgConn().CleanupDone():
	case <-ctx.Done():
	}
}

func (s *session) pgx() *pgx.Conn { return s.conn.Conn() }

// enter finds the schema, and then takes every schema out of the search_path.
func (s *session) enter(ctx context.Context, schema string) error {
	// The cast shortens a long name as the server does for an identifier. There is no
	// operator in it, not even that of nullif, and each type is qualified: in a search_path
	// that names pg_catalog behind another schema, one there is preferred, and casting to a
	// domain runs its constraints.
	const resolve = `select pg_catalog.current_database(), coalesce(pg_catalog.current_schema()::pg_catalog.text, ''), current_user::pg_catalog.text, $1::pg_catalog.text::pg_catalog.name::pg_catalog.text,
		pg_catalog.current_schemas(false)::pg_catalog.text[]`
	var first, named string
	var path []string
	if err := s.pgx().QueryRow(ctx, resolve, schema).Scan(&s.database, &first, &s.role, &named, &path); err != nil {
		return fmt.Errorf("looking up schema %q: %w", schema, err)
	}
	if named == "" && len(path) > 0 {
		s.later = path[1:]
	}
	s.schema = cmp.Or(named, first)
	if s.schema == "" {
		return fmt.Errorf("the connection's search_path contains no existing schema that role %q may use: name one, or grant usage on one", s.role)
	}
	if s.schema == "$user" { // means another one in a search_path, however quoted
		return errors.New(`schema "$user" cannot be in a search_path: name another`)
	}
	return s.searchOnly(ctx, noSchema)
}

// noSchema is the search_path in which nothing is found but what is PostgreSQL's:
// no operator or function that somebody has planted, in our statements or in
// golang-migrate's.
const noSchema = "pg_catalog, pg_temp"

func (s *session) searchOnly(ctx context.Context, path string) error {
	const setPath = `select pg_catalog.set_config('search_path'::pg_catalog.text, $1::pg_catalog.text, false)` // see enter
	if _, err := s.pgx().Exec(ctx, setPath, path); err != nil {
		return fmt.Errorf("setting the search_path: %w", err)
	}
	return nil
}

// lock waits until no other session migrates this schema. The lock is
// golang-migrate's own, which also keeps its command out, and is held until the
// session ends.
//
// It asks again and again instead of waiting inside pg_advisory_lock: there, the
// connection's lock_timeout or statement_timeout would end the wait, a session
// that waits would hold back vacuum and every create index concurrently, and a
// cancelled one would have to be ended on the server.
func (s *session) lock(ctx context.Context) error {
	id, err := database.GenerateAdvisoryLockId(s.database, s.schema, versionTable)
	if err != nil {
		return err
	}
	doing := "locking schema %q for migrations: %w"
	for delay := 10 * time.Millisecond; ; delay = min(2*delay, 250*time.Millisecond) {
		var held bool
		if err := s.pgx().QueryRow(ctx, `select pg_try_advisory_lock($1::bigint)`, id).Scan(&held); err != nil {
			return fmt.Errorf(doing, s.schema, err)
		}
		if held {
			return nil
		}
		doing = "waiting for another session that is migrating schema %q: %w"
		select {
		case <-time.After(delay/2 + rand.N(delay)):
		case <-ctx.Done():
			return fmt.Errorf(doing, s.schema, ctx.Err())
		}
	}
}

// createSchema asks before it creates, because "create schema if not exists"
// needs the right to create schemas even when there is nothing to create.
func (s *session) createSchema(ctx context.Context) error {
	var exists bool
	err := s.pgx().QueryRow(ctx, existsSQL, s.schema).Scan(&exists)
	if err != nil {
		return fmt.Errorf("looking up schema %q: %w", s.schema, err)
	}
	if exists {
		return nil
	}
	_, err = s.pgx().Exec(ctx, `create schema if not exists `+quoted(s.schema))
	if err == nil {
		return nil
	}
	// Somebody who does not take our lock can have made it at this moment, which "if
	// not exists" does not see.
	lookErr := s.pgx().QueryRow(ctx, existsSQL, s.schema).Scan(&exists)
	if lookErr == nil && exists {
		return nil
	}
	return fmt.Errorf("schema %q does not exist, and creating it failed: %w", s.schema, err)
}

const existsSQL = `select exists (select from pg_namespace where nspname = $1::text)`

// table returns the qualified, quoted name of a table in the session's schema.
func (s *session) table(name string) string {
	return pgx.Identifier{s.schema, name}.Sanitize()
}

// A state is what the version table says. While a migration runs, golang-migrate
// records the version it leads to as dirty.
type state struct {
	recorded bool // there is a version table
	version  uint // 0: none
	dirty    bool
}

// applied is the last version that is whole for certain.
func (at state) applied() uint {
	if at.dirty {
		return max(at.version, 1) - 1
	}
	return at.version
}

// state reads the version table with a query of its own: golang-migrate's driver
// would lock, and create the table.
func (s *session) state(ctx context.Context) (at state, err error) {
	defer func() {
		if remedy.Denied(err) {
			err = fmt.Errorf("%w; to let the role read it: grant usage on schema %s to %s; grant select on %s to %[3]s",
				err, quoted(s.schema), quoted(s.role), s.table(versionTable))
		}
		if err != nil {
			err = fmt.Errorf("reading the version of schema %q: %w", s.schema, err)
		}
	}()
	how := toRead
	err = s.ownVersions(ctx, s.pgx(), how) // before it is locked, for which the role may lack the right
	if errors.As(err, new(squattedError)) {
		how = toReadInert
		err = s.ownVersions(ctx, s.pgx(), how)
	}
	if errors.Is(err, keytable.ErrMissing) {
		return state{}, nil
	}
	if err != nil {
		return state{}, err
	}
	at.recorded = true
	version := database.NilVersion
	err = s.holdingVersions(ctx, how, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `select version, dirty from `+s.table(versionTable)+` limit 1`).Scan(&version, &at.dirty)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows): // made, and nothing applied yet
		err = nil
	case errors.Is(keytable.LockError(err), keytable.ErrMissing): // removed just now
		return state{}, nil
	}
	at.version = uint(max(version, 0))
	return at, err
}

// setVersion is golang-migrate's SetVersion, behind a look at the table.
func (s *session) setVersion(ctx context.Context, version int, dirty bool) error {
	return s.holdingVersions(ctx, toWrite, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `truncate `+s.table(versionTable)); err != nil {
			return err
		}
		if version == database.NilVersion && !dirty {
			return nil
		}
		_, err := tx.Exec(ctx, `insert into `+s.table(versionTable)+` (version, dirty) values ($1, $2)`, version, dirty)
		return err
	})
}

// A hold is a lock on the record of the versions, and who is a stranger under it.
type hold struct {
	mode     string
	stranger func(keytable.Table) *keytable.Stranger
}

var (
	toRead  = hold{"access share", keytable.Table.StrangerUnlessLocked}
	toWrite = hold{"access exclusive", keytable.Table.StrangerToOwners}

	// toReadInert keeps everybody from putting something on the table, which is how a
	// superuser can read the one of an app that owns its schema or its database.
	toReadInert = hold{"share row exclusive", keytable.Table.Stranger}
)

// holdingVersions calls do in a transaction that holds the lock and has looked at the
// table since: until then the owner of the schema could put another relation in its
// place. To lock it runs nothing of it.
func (s *session) holdingVersions(ctx context.Context, how hold, do func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, s.pgx(), func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `lock table `+s.table(versionTable)+` in `+how.mode+` mode`); err != nil {
			return err
		}
		if err := s.ownVersions(ctx, tx, how); err != nil {
			return err
		}
		return do(tx)
	})
}

// byOwner says who can do it, where the role may not change what is there.
func (s *session) byOwner(err error) error {
	if !remedy.Denied(err) {
		return err
	}
	return fmt.Errorf("%w; role %s may not: let the owner of the tables do it, who needs usage and create on schema %s",
		err, quoted(s.role), quoted(s.schema))
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }
