package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// maxConnections is for parallel tests, each with a pool or two. Everything
// else, fsync too, is as PostgreSQL has it by default: some tests count fsyncs.
const maxConnections = "300"

// A database is a PostgreSQL that the command may use.
type database struct {
	URL     string
	Direct  string // past a pooler, if there is one
	Version string // "18.1" for example
	Where   string // it comes from
	Bytes   bool   // text sorts as bytes there: its locale is C
	close   func() // ends the server if it is ours
}

// A source is a way to come by a database.
type source struct {
	name  string
	start func(context.Context, settings) (*database, error)
	// kept: start runs in a keeper, as it leaves something to clean up.
	kept bool
	// unprivileged: start may not run as root, because PostgreSQL does not.
	unprivileged bool
}

var (
	env    = source{name: "env", start: useEnv}
	local  = source{name: "local", start: startLocal, kept: true, unprivileged: true}
	docker = source{name: "docker", start: startDocker, kept: true}
	npm    = source{name: "npm", start: startDownloaded}

	pooler = source{name: "pgbouncer", start: startPgBouncer, kept: true, unprivileged: true}
)

// sources are what is tried, in this order. A certain version is downloaded sooner
// than run in Docker, so that all versions run alike.
func (set settings) sources() []source {
	if set.Version != 0 {
		return []source{env, local, npm, docker}
	}
	return []source{env, local, docker, npm}
}

func (src source) open(ctx context.Context, set settings) (*database, error) {
	start := src.start
	if src.kept {
		start = src.startKept
	}
	db, err := start(ctx, set)
	if err == nil && set.Version != 0 && numbers(db.Version)[0] != set.Version {
		db.close()
		return nil, fmt.Errorf("PostgreSQL %s %s is not the version %d that is asked for", db.Version, db.Where, set.Version)
	}
	return db, err
}

func sourceNamed(name string) (source, error) {
	for _, src := range []source{env, local, docker, npm, pooler} {
		if src.name == name {
			return src, nil
		}
	}
	return source{}, fmt.Errorf("no source %q", name)
}

const advice = `do one of these:
  set DATABASE_URL to a server on which you may create databases
  install PostgreSQL's server (apt-get install postgresql, brew install postgresql), or name its folder with -bindir
  start Docker
  install npm, which can download a PostgreSQL`

// open opens what the command gets to see.
func open(ctx context.Context, set settings) (*database, error) {
	db, err := openServer(ctx, set)
	if err != nil {
		return nil, err
	}
	if set.PgBouncer {
		if db, err = openPooler(ctx, set, db); err != nil {
			return nil, err
		}
	}
	if db.Bytes, err = sortsBytes(ctx, db.URL); err != nil {
		db.close()
		return nil, err
	}
	db.URL = withMode(db.URL, set.Mode)
	return db, nil
}

// sortsBytes asks whether text sorts as bytes.
func sortsBytes(ctx context.Context, url string) (bytes bool, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return false, err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, "select 'B' < 'a'", pgx.QueryExecModeSimpleProtocol).Scan(&bytes)
	return bytes, err
}

// withMode adds a query exec mode to a connection string of either form.
func withMode(dsn, mode string) string {
	const name = "default_query_exec_mode"
	u, err := url.Parse(dsn)
	switch {
	case mode == "":
		return dsn
	case err != nil || u.Scheme == "": // keywords and values, of which the last wins
		return dsn + " " + name + "=" + mode
	}
	query := u.Query()
	query.Set(name, mode)
	u.RawQuery = query.Encode()
	return u.String()
}

// openServer opens the source that was asked for, or else the first that works.
func openServer(ctx context.Context, set settings) (*database, error) {
	if set.Source != "auto" {
		src, err := sourceNamed(set.Source)
		if err != nil {
			return nil, err
		}
		return src.open(ctx, set)
	}
	var reasons strings.Builder
	for _, src := range set.sources() {
		db, err := src.open(ctx, set)
		if err == nil || ctx.Err() != nil {
			return db, err
		}
		// Who names a server must not be given another one silently.
		if src.name == env.name && !errors.Is(err, errNotSet) {
			return nil, err
		}
		fmt.Fprintf(&reasons, "  %s: %v\n", src.name, err)
	}
	return nil, fmt.Errorf("no PostgreSQL found:\n%s%s", reasons.String(), advice)
}

// version connects to the server and returns its version, "18.1" for example.
func version(ctx context.Context, url string) (string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	// "15.18 (Debian 15.18-0+deb12u1)"
	v, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), " ")
	return v, nil
}

// waitReady asks for the version until the server answers.
func waitReady(ctx context.Context, url string) (string, error) {
	for {
		v, err := version(ctx, url)
		if err == nil {
			return v, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("not ready: %w, %w", context.Cause(ctx), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tail returns the end of a server's log, to be appended to an error.
func tail(log []byte) string {
	text := strings.TrimSpace(string(log))
	if text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	return "\nthe end of its log:\n\t" + strings.Join(lines[max(0, len(lines)-20):], "\n\t")
}
