package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/bench/server"
)

// database is where all schemas are made; it is removed at the end.
const database = "bench_variants"

// A lab is one run.
type lab struct {
	rows, scopes, rounds int
	brief                bool
	into                 string // a document to renew
	whole                bool   // all sections are run, so that the conditions are those of all

	server *server.Server
	admin  *pgxpool.Pool // on the database
	log    io.Writer
	out    io.Writer
	began  time.Time
	places int // schemas made so far
}

func (l *lab) measure(ctx context.Context, dsn string, todo []section) (err error) {
	if l.server, err = server.Open(ctx, dsn); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := l.server.Recreate(ctx, database); err != nil {
		return err
	}
	if l.admin, err = pgxpool.New(ctx, l.server.DSN(database, "")); err != nil {
		return err
	}
	l.whole = len(todo) == len(sections)
	for _, s := range append([]section{{"conditions", (*lab).conditions}}, todo...) {
		if err := l.section(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	l.logf("done")
	return nil
}

func (l *lab) section(ctx context.Context, s section) error {
	l.logf("%s", s.name)
	var text strings.Builder
	out := l.out
	l.out = io.MultiWriter(out, &text)
	err := s.run(l, ctx)
	l.out = out
	if err == nil && l.into != "" && (l.whole || s.name != "conditions") {
		err = renew(l.into, s.name, text.String())
	}
	return err
}

// close removes everything, also after Ctrl-C.
func (l *lab) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	defer l.server.Close()
	if l.admin != nil {
		l.admin.Close()
	}
	return l.server.Drop(ctx, database)
}

func (l *lab) conditions(ctx context.Context) error {
	var version, fsync string
	err := l.admin.QueryRow(ctx, `select current_setting('server_version'), current_setting('fsync')`).Scan(&version, &fsync)
	if err != nil {
		return err
	}
	l.printf("PostgreSQL %s, fsync %s, %s socket; %d cores, load %s; -rows %d -scopes %d -rounds %d\n",
		version, fsync, l.server.Network, runtime.NumCPU(), load(), l.rows, l.scopes, l.rounds)
	return nil
}

// load is how many processes wanted to run in the last minute: where they are more
// than the cores, times say little.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}

func (l *lab) printf(format string, args ...any) { fmt.Fprintf(l.out, format, args...) }

func (l *lab) logf(format string, args ...any) {
	fmt.Fprintf(l.log, "%6s  %s\n", time.Since(l.began).Round(time.Second), fmt.Sprintf(format, args...))
}

// show prints a table under a heading.
func (l *lab) show(title string, t *table) { l.printf("\n### %s\n\n%s", title, t) }

func (l *lab) exec(ctx context.Context, sql string, args ...any) error {
	_, err := l.admin.Exec(ctx, sql, args...)
	return err
}

func (l *lab) number(ctx context.Context, sql string, args ...any) (n int64, err error) {
	err = l.admin.QueryRow(ctx, sql, args...).Scan(&n)
	return n, err
}

// wal is where the server's write-ahead log has got to, in bytes.
func (l *lab) wal(ctx context.Context) (int64, error) {
	return l.number(ctx, "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")
}

// A site is a variant in a schema of its own.
type site struct {
	variant
	schema string
	pool   *pgxpool.Pool
	form   form
}

// A way is how a site's connections are made.
type way struct {
	address string // empty: straight to the server
	async   bool   // do not wait for the disk at COMMIT: for what is counted, not timed
	strict  bool   // SERIALIZABLE
}

// sites makes one for each variant. The caller closes them.
func (l *lab) sites(ctx context.Context, w way, variants ...variant) (all []*site, err error) {
	for _, v := range variants {
		s, err := l.site(ctx, w, v)
		if err != nil {
			l.leave(all)
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func (l *lab) site(ctx context.Context, w way, v variant) (*site, error) {
	l.places++
	s := &site{variant: v, schema: fmt.Sprintf("v%d", l.places)}
	sql, err := v.statements(s.schema)
	if err != nil {
		return nil, err
	}
	s.form = sql.form()
	if v.form != nil {
		s.form = v.form(sql)
	}
	if s.pool, err = l.pool(ctx, s.schema, w); err != nil {
		return nil, err
	}
	ddl, err := v.ddl()
	if err != nil {
		return nil, err
	}
	// Nothing happens at a time of its own choosing.
	const quietSQL = "alter table idempotency_keys set (autovacuum_enabled = false)"
	all := append([]string{"create schema " + s.schema}, ddl...)
	if !v.partitioned {
		all = append(all, quietSQL)
	}
	for _, sql := range append(all, businessTable) {
		if _, err := s.pool.Exec(ctx, sql); err != nil {
			s.pool.Close()
			return nil, fmt.Errorf("%s: %w", sql, err)
		}
	}
	return s, nil
}

// maxConns is enough for the callers of every section.
const maxConns = 10

func (l *lab) pool(ctx context.Context, schema string, w way) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(l.server.DSN(database, w.address))
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = maxConns
	cfg.ConnConfig.RuntimeParams["search_path"] = schema
	if w.async {
		cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
	}
	if w.strict {
		cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// leave gives back everything of the sites.
func (l *lab) leave(all []*site) {
	for _, s := range all {
		s.pool.Close()
		if err := l.exec(context.Background(), "drop schema if exists "+s.schema+" cascade"); err != nil {
			l.logf("%v", err)
		}
	}
}
