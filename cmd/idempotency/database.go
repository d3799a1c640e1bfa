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
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
)

// A database is what the flags say about the one to work on.
type database struct {
	inspect.Table
	url     string
	timeout time.Duration
	asIs    bool // the connection as the URL describes it
	tracer  pgx.QueryTracer
	loop    bool // a connection that was lost meanwhile is told of, and not just replaced
}

func databaseFlags(fs *flag.FlagSet, timeout time.Duration) *database {
	d := new(database)
	// No default value: the help prints it, and it may contain a password.
	fs.StringVar(&d.url, "database", "", "`URL` of the database (default: the environment variable DATABASE_URL, or else PGHOST, PGDATABASE, PGUSER and so on)")
	schemaFlag(fs, &d.Schema)
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
		cfg.AfterConnect = inspect.Prepare
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
		schema := d.Schema
		if schema == "" {
			if schema, err = keytable.Schema(ctx, pool); err != nil {
				return err
			}
		}
		if d.Found = schema; schema == "" {
			return inspect.Untrusted(remedy.MissingTable)
		}
		return do(ctx, pool)
	}
}

// store returns the Store of the table.
func (d *database) store(pool *pgxpool.Pool, observe func(context.Context, idempotency.Event)) (*idempotency.Store, error) {
	return idempotency.NewWithConfig(pool, idempotency.Config{Schema: cmp.Or(d.Found, d.Schema), Observe: observe})
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
