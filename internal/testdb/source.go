package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// maxConnections is for parallel tests, each with a pool or two. Everything
// else, fsync too, is as PostgreSQL has it by default: some tests count fsyncs.
const maxConnections = "300"

// A database is a PostgreSQL that the command may use.
type database struct {
	URL   string
	About string // which server, and from where
	close func() // ends the server if it is ours
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

var sources = []source{
	{name: "env", start: useEnv},
	{name: "local", start: startLocal, kept: true, unprivileged: true},
	{name: "docker", start: startDocker, kept: true},
	{name: "embedded", start: startEmbedded, kept: true, unprivileged: true},
}

func (src source) open(ctx context.Context, set settings) (*database, error) {
	if src.kept {
		return startKept(ctx, src, set)
	}
	return src.start(ctx, set)
}

func sourceNamed(name string) (source, error) {
	for _, src := range sources {
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
  connect to the internet, so that a PostgreSQL can be downloaded`

// open opens the source that was asked for, or else the first that works.
func open(ctx context.Context, set settings) (*database, error) {
	if set.Source != "auto" {
		src, err := sourceNamed(set.Source)
		if err != nil {
			return nil, err
		}
		return src.open(ctx, set)
	}
	var reasons strings.Builder
	for _, src := range sources {
		db, err := src.open(ctx, set)
		if err == nil || ctx.Err() != nil {
			return db, err
		}
		// Who names a server must not be given another one silently.
		if src.name == "env" && !errors.Is(err, errNotSet) {
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
	var v string
	err = conn.QueryRow(ctx, "show server_version").Scan(&v)
	v, _, _ = strings.Cut(v, " ") // "15.18 (Debian 15.18-0+deb12u1)"
	return v, err
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
