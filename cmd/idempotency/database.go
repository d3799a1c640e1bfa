package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/condition"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
)

// A database is what the flags say about the one to work on.
type database struct {
	url     string
	schema  string
	timeout time.Duration
	asIs    bool   // the connection as the URL describes it
	found   string // the schema that the table has
	tracer  pgx.QueryTracer
	loop    bool         // a connection that was lost meanwhile is told of, and not just replaced
	forUse  keytable.Use // of the table
}

func databaseFlags(fs *flag.FlagSet, timeout time.Duration) *database {
	d := new(database)
	// No default value: the help prints it, and it may contain a password.
	fs.StringVar(&d.url, "database", "", "`URL` of the database (default: the environment variable DATABASE_URL, or else PGHOST, PGDATABASE, PGUSER and so on)")
	schemaFlag(fs, &d.schema)
	fs.DurationVar(&d.timeout, "timeout", timeout, "give up after this `time`, 0 for never")
	return d
}

func schemaFlag(fs *flag.FlagSet, schema *string) {
	fs.StringVar(schema, "schema", "", "`NAME` of the table's schema (default: as the connection's search_path has it)")
}

// use calls do with a pool on the database, and says what to do when that fails.
func (d *database) use(ctx context.Context, do func(context.Context, *pgxpool.Pool) error) error {
	return d.connect(ctx, func(pool *pgxpool.Pool) error { return d.within(ctx, pool, do) })
}

// connect calls do with a pool on the database.
func (d *database) connect(ctx context.Context, do func(*pgxpool.Pool) error) error {
	if d.timeout < 0 {
		return usageError{fmt.Sprintf("-timeout %v: it has to be 0 or more", d.timeout), true}
	}
	cfg, err := d.config()
	if err != nil {
		return err
	}
	cfg.ConnConfig.Tracer = d.tracer
	if !d.asIs {
		cfg.ConnConfig.RuntimeParams["application_name"] = cmp.Or(cfg.ConnConfig.RuntimeParams["application_name"], "idempotency")
		if cfg.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
			cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe // as fast, and works through every pooler
		}
	}
	if d.loop {
		cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	}
	if !d.asIs { // the doctor finds it
		cfg.AfterConnect = prepare
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg) // connects when it is used
	if err != nil {
		return err
	}
	defer pool.Close()
	return do(pool)
}

// within calls do, which has to end in time, and says what to do when it fails.
func (d *database) within(ctx context.Context, pool *pgxpool.Pool, do func(context.Context, *pgxpool.Pool) error) error {
	if d.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.timeout)
		defer cancel()
	}
	return d.explain(ctx, do(ctx, pool))
}

// useTable is use for those who work with the rows of the table. Nothing of it is read or
// written unless it can be trusted: a view, a trigger, a policy of somebody else would
// run with the rights of whoever types the command. From here on every statement names
// the schema, and what reads or writes rows looks at the table first: see reading and writing.
func (d *database) useTable(ctx context.Context, do func(context.Context, *pgxpool.Pool) error) error {
	return d.use(ctx, d.located(do))
}

// located is do when it is known in which schema the table is.
func (d *database) located(do func(context.Context, *pgxpool.Pool) error) func(context.Context, *pgxpool.Pool) error {
	return func(ctx context.Context, pool *pgxpool.Pool) (err error) {
		schema := d.schema
		if schema == "" {
			if schema, err = keytable.Schema(ctx, pool); err != nil {
				return err
			}
		}
		if d.found = schema; schema == "" {
			return untrusted(remedy.MissingTable)
		}
		return do(ctx, pool)
	}
}

// reading calls do in a transaction in which the table is what it was found to be: what
// somebody has put in its place since would run. It is read only, but where another table
// may have to be held as an inert one: see keytable.Hold.
func (d *database) reading(ctx context.Context, pool *pgxpool.Pool, do func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		table, err := d.heldKeys(ctx, tx, keytable.Reading)
		if err == nil && !table.Inert() {
			_, err = tx.Exec(ctx, readOnlySQL)
		}
		if err != nil {
			return err
		}
		return do(tx)
	})
}

const readOnlySQL = `set transaction read only`

// purging is the context for a Store's methods that delete what has expired, each
// transaction of which looks at the table first. They name no other.
func (d *database) purging(ctx context.Context) context.Context {
	return condition.With(ctx, func(ctx context.Context, tx pgx.Tx) (operations bool, err error) {
		_, err = d.heldKeys(ctx, tx, keytable.Writing)
		return false, err
	})
}

// changing is the context for the methods that change one key, each transaction of which
// looks at both tables first. That of the operations is held for use. Where it is missing,
// the error is absent, or it is not read: whatever gets its name from now on has not been
// looked at.
func (d *database) changing(ctx context.Context, use keytable.Use, absent error) context.Context {
	return condition.With(ctx, func(ctx context.Context, tx pgx.Tx) (operations bool, err error) {
		if _, err := d.heldKeys(ctx, tx, keytable.Writing); err != nil {
			return false, err
		}
		there, err := keytable.Holds(ctx, tx, d.found, keytable.Operations) // to hold what is not there would end the transaction
		if err != nil || !there {
			return false, cmp.Or(err, absent)
		}
		_, err = d.heldTable(ctx, tx, keytable.Operations, use)
		return err == nil, err
	})
}

// heldKeys holds the table of the keys until tx ends, and returns why it is not worked with.
func (d *database) heldKeys(ctx context.Context, tx pgx.Tx, use keytable.Use) (keytable.Table, error) {
	table, err := d.heldTable(ctx, tx, keytable.Name, use)
	if errors.Is(err, keytable.ErrMissing) {
		err = untrusted(remedy.MissingTable) // the one that somebody makes from now on has not been looked at
	}
	return table, err
}

// heldTable holds a table that has our columns, with our types. For others an operator, or a
// function, that somebody has made can be an exact match.
func (d *database) heldTable(ctx context.Context, tx pgx.Tx, relation string, use keytable.Use) (table keytable.Table, err error) {
	table, err = d.trusted(ctx, tx, relation, use)
	if err == nil && !table.Fits() {
		err = d.unfit(relation, table)
	}
	return table, err
}

func (d *database) unfit(relation string, table keytable.Table) error {
	return untrusted(fmt.Sprintf("%s was not made by this package: %s: rename what is there, or name another schema (-schema)", qualified(d.found, relation), table.Unfit()))
}

// trusted is heldTable whatever the columns are.
func (d *database) trusted(ctx context.Context, tx pgx.Tx, relation string, use keytable.Use) (table keytable.Table, err error) {
	name := qualified(d.found, relation)
	table, err = keytable.Hold(ctx, tx, d.found, relation, use)
	switch {
	case errors.Is(err, keytable.ErrMissing):
		return table, err
	case errors.Is(err, keytable.ErrNoTable), err == nil && !table.IsTable():
		return table, untrusted(fmt.Sprintf("%s is not a table: rename what is there, name another schema (-schema), and let only trusted roles create in the schema", name))
	case err != nil:
		return table, fmt.Errorf("looking at %s: %w", name, err)
	}
	if stranger := table.StrangerByName(d.forUse); stranger != nil {
		return table, untrusted(fmt.Sprintf("%s: %s", stranger.Found(name), stranger.Remedy()))
	}
	return table, nil
}

// prepare makes a new session one in which the keys are what they are, and refuses one in
// which anything could run.
func prepare(ctx context.Context, conn *pgx.Conn) error {
	if err := unshadowed(ctx, conn); err != nil {
		return err
	}
	return legible(ctx, conn)
}

// legible sets client_encoding where it is neither what pgx sends nor what the database
// keeps: one key would be shown, or deleted, for another. A Store refuses such keys.
func legible(ctx context.Context, conn *pgx.Conn) error {
	server, client := conn.PgConn().ParameterStatus("server_encoding"), conn.PgConn().ParameterStatus("client_encoding")
	if client == server || client == "UTF8" || client == "SQL_ASCII" || server == "SQL_ASCII" {
		return nil
	}
	_, err := conn.Exec(ctx, "set client_encoding to 'UTF8'", pgx.QueryExecModeExec)
	return err
}

// unshadowed refuses a session in which any statement could run what somebody has planted.
func unshadowed(ctx context.Context, conn *pgx.Conn) error {
	path, err := keytable.Shadowing(ctx, conn)
	if err == nil && path != "" {
		err = untrusted(fmt.Sprintf("the search_path, %s, names pg_catalog behind another schema, whose operators and functions would run instead of PostgreSQL's: %s", path, keytable.ShadowingRemedy))
	}
	return err
}

// untrusted is why the table is not worked with.
type untrusted string

func (e untrusted) Error() string { return string(e) }

// qualified is a table's name in SQL.
func qualified(schema, table string) string {
	if schema == "" {
		return table
	}
	return pgx.Identifier{schema, table}.Sanitize()
}

// store returns the Store of the table.
func (d *database) store(pool *pgxpool.Pool, observe func(context.Context, idempotency.Event)) (*idempotency.Store, error) {
	return idempotency.NewWithConfig(pool, idempotency.Config{Schema: cmp.Or(d.found, d.schema), Observe: observe})
}

// on puts the names of the tables into one of the statements of this command.
func (d *database) on(sql string) string {
	var names []string
	for _, table := range []string{keytable.Name, keytable.Operations} {
		name := qualified(cmp.Or(d.found, d.schema), table)
		names = append(names, "'"+table+"'", keytable.Literal(name), table, name)
	}
	return strings.NewReplacer(names...).Replace(sql)
}

func (d *database) config() (*pgxpool.Config, error) {
	text := cmp.Or(d.url, os.Getenv("DATABASE_URL"))
	cfg, err := pgxpool.ParseConfig(text)
	why := ""
	if err != nil {
		why = unreadable(err)
	} else {
		why = misread(text, &cfg.ConnConfig.Config)
	}
	if why != "" {
		return nil, fmt.Errorf("cannot read %s: %s", cmp.Or(d.source(), "the PG* environment variables"), why)
	}
	return cfg, nil
}

// source names where the connection's settings came from, if they were given.
func (d *database) source() string {
	switch {
	case d.url != "":
		return "-database"
	case os.Getenv("DATABASE_URL") != "":
		return "DATABASE_URL"
	default:
		return "" // PG* variables and the defaults
	}
}

// place names a database without its password.
func place(cfg *pgconn.Config) string {
	where := net.JoinHostPort(cfg.Host, fmt.Sprint(cfg.Port))
	if strings.HasPrefix(cfg.Host, "/") {
		where = fmt.Sprintf("socket %s, port %d", cfg.Host, cfg.Port)
	}
	return fmt.Sprintf("database %q at %s", cmp.Or(cfg.Database, cfg.User), where)
}

func (d *database) explain(ctx context.Context, err error) error {
	if err == nil || errors.As(err, new(exitError)) || errors.As(err, new(usageError)) {
		return err
	}
	if e, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		err = d.unreachable(ctx, e)
	}
	switch ctx.Err() {
	case context.Canceled:
		err = fmt.Errorf("interrupted: %w", err)
	case context.DeadlineExceeded:
		err = fmt.Errorf("gave up after %v (-timeout): %w", d.timeout, err)
	}
	text := strings.TrimPrefix(err.Error(), "idempotency: ")
	text = strings.TrimPrefix(text, "idempotency/doctor: ")
	return errors.New(oneLine(strings.Replace(text, "idempotency/migrations: ", "", 1)))
}

func (d *database) unreachable(ctx context.Context, err *pgconn.ConnectError) error {
	hint := "set DATABASE_URL, or give -database URL"
	if source := d.source(); source != "" {
		hint = "check " + source
	}
	return fmt.Errorf("cannot connect to %s as user %q: %s: %s", place(err.Config), err.Config.User, reason(ctx, err), hint)
}

// reason is the innermost error that tells something.
func reason(ctx context.Context, err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		if e.Code == "42704" || e.Code == "22023" || e.Code == "42601" { // its name or value can be the rest of a password
			return "the server refuses a parameter in the connection string, SQLSTATE " + e.Code
		}
		return e.Message
	}
	if ctx.Err() != nil {
		return "no answer"
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e.Err.Error()
	}
	return errors.Unwrap(err).Error()
}

// oneLine joins the lines in which pgx reports several hosts.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
