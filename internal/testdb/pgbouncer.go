package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
)

// pgBouncerConfig is that of a pooler which keeps nothing for a session: a
// transaction gets whichever server connection is free, and prepared statements
// are not looked after (as in all releases before 1.21). Everything else is as
// PgBouncer has it by default.
const pgBouncerConfig = `
[databases]
* = host=%s port=%d

[pgbouncer]
pool_mode = transaction
max_client_conn = 1000
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
`

// A bouncer is a PgBouncer in front of a server.
type bouncer struct {
	*daemon
	path   string
	server *pgx.ConnConfig
}

// openPooler puts a PgBouncer in front of a server. It ends before the server.
func openPooler(ctx context.Context, set settings, server *database) (*database, error) {
	set.Upstream = server.URL
	db, err := pooler.open(ctx, set)
	if err != nil {
		server.close()
		return nil, fmt.Errorf("pgbouncer: %w", err)
	}
	db.Where = server.Where + ", " + db.Where
	closePooler := db.close
	db.close = func() {
		closePooler()
		server.close()
	}
	return db, nil
}

func startPgBouncer(ctx context.Context, set settings) (*database, error) {
	path, err := findPgBouncer()
	if err != nil {
		return nil, err
	}
	cfg, err := pgx.ParseConfig(set.Upstream)
	if err != nil {
		return nil, err
	}
	d, err := newDaemon()
	if err != nil {
		return nil, err
	}
	b := &bouncer{daemon: d, path: path, server: cfg}
	port, version, err := b.start(ctx, b.pgbouncer, b.url)
	if err != nil {
		return nil, d.fail(err)
	}
	return &database{URL: b.url(port), Direct: set.Upstream, Version: version, Where: "through PgBouncer", close: b.close}, nil
}

// findPgBouncer looks into a folder of Debian's, too, that is not in everybody's
// PATH.
func findPgBouncer() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	path, err := exec.LookPath("/usr/sbin/pgbouncer")
	if err != nil {
		return "", errors.New("it is not installed (apt-get install pgbouncer, brew install pgbouncer)")
	}
	return path, nil
}

// pgbouncer writes the configuration and prepares the command.
func (b *bouncer) pgbouncer(port string) (*exec.Cmd, error) {
	users, config := filepath.Join(b.dir, "users"), filepath.Join(b.dir, "pgbouncer.ini")
	user := fmt.Sprintf("%s %s\n", quoted(b.server.User), quoted(b.server.Password))
	if err := os.WriteFile(users, []byte(user), 0o600); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(pgBouncerConfig, b.server.Host, b.server.Port, port, users)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return b.command(b.path, config), nil
}

func quoted(text string) string { return `"` + strings.ReplaceAll(text, `"`, `""`) + `"` }

func (b *bouncer) url(port string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(b.server.User, b.server.Password),
		Host:     net.JoinHostPort("127.0.0.1", port),
		Path:     "/" + b.server.Database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}
