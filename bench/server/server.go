// Package server is the PostgreSQL that the benchmark runs on: databases, the
// ways to it, and its counters.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Server is the one of DATABASE_URL.
type Server struct {
	Admin   *pgxpool.Pool
	Network string // "unix" where its socket can be reached, else "tcp"
	Address string // for net.Dial
	config  *pgx.ConnConfig
	alone   *pgx.Conn
}

// lockID is an advisory lock: two benchmarks at a time would measure each other.
const lockID = 0x62656e6368

// patience is for one that was killed just now.
const patience = 3 * time.Second

// Open connects to the server of a URL. It fails if a benchmark is running there.
func Open(ctx context.Context, dsn string) (*Server, error) {
	if dsn == "" {
		return nil, errors.New("DATABASE_URL is not set: run `make bench`, which starts a PostgreSQL and sets it")
	}
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	s := &Server{config: cfg.ConnConfig}
	if s.Admin, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return nil, err
	}
	if err := errors.Join(s.lock(ctx), s.locate(ctx)); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close lets the next benchmark in.
func (s *Server) Close() {
	if s.alone != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, _ = s.alone.Exec(ctx, "select pg_advisory_unlock($1)", lockID) // at once; the session ends a little later
		s.alone.Close(ctx)
	}
	s.Admin.Close()
}

func (s *Server) lock(ctx context.Context) (err error) {
	if s.alone, err = pgx.ConnectConfig(ctx, s.config.Copy()); err != nil {
		return err
	}
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		var got bool
		err := s.alone.QueryRow(ctx, "select pg_try_advisory_lock($1)", lockID).Scan(&got)
		if err != nil || got {
			return err
		}
		if time.Since(start) > patience {
			return errors.New("another benchmark is running on this server: they would measure each other")
		}
	}
}

// locate finds the unix socket of a server on this machine.
func (s *Server) locate(ctx context.Context) error {
	s.Network, s.Address = "tcp", net.JoinHostPort(s.config.Host, strconv.Itoa(int(s.config.Port)))
	if strings.HasPrefix(s.config.Host, "/") {
		s.Network, s.Address = "unix", socketIn(s.config.Host, s.config.Port)
		return nil
	}
	var folders string
	var port uint16
	err := s.Admin.QueryRow(ctx, "select current_setting('unix_socket_directories'), current_setting('port')::int").Scan(&folders, &port)
	if err != nil {
		return err
	}
	for folder := range strings.SplitSeq(folders, ",") {
		folder = strings.TrimSpace(folder)
		if filepath.IsAbs(folder) && s.answersAt(ctx, folder, port) {
			s.Network, s.Address = "unix", socketIn(folder, port)
			return nil
		}
	}
	return nil
}

func socketIn(folder string, port uint16) string {
	return filepath.Join(folder, fmt.Sprintf(".s.PGSQL.%d", port))
}

// answersAt: a server in a container names folders that are not this machine's.
func (s *Server) answersAt(ctx context.Context, folder string, port uint16) bool {
	if _, err := os.Stat(socketIn(folder, port)); err != nil {
		return false
	}
	cfg := s.config.Copy()
	cfg.Host, cfg.Port, cfg.Fallbacks, cfg.TLSConfig = folder, port, nil, nil
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return false
	}
	defer conn.Close(ctx)
	var there, here time.Time
	const startedSQL = "select pg_postmaster_start_time()"
	err = errors.Join(conn.QueryRow(ctx, startedSQL).Scan(&there), s.Admin.QueryRow(ctx, startedSQL).Scan(&here))
	return err == nil && there.Equal(here)
}

// DSN is a database at an address; an empty one is the server's own.
func (s *Server) DSN(database, address string) string {
	query := url.Values{"sslmode": {"disable"}}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(s.config.User, s.config.Password), Path: "/" + database}
	switch {
	case address != "":
		u.Host = address
	case s.Network == "unix":
		folder, file := filepath.Split(s.Address)
		query.Set("host", filepath.Clean(folder))
		query.Set("port", strings.TrimPrefix(file, ".s.PGSQL."))
	default:
		u.Host = s.Address
	}
	u.RawQuery = query.Encode()
	return u.String()
}

// Recreate makes an empty database.
func (s *Server) Recreate(ctx context.Context, name string) error {
	if err := s.Drop(ctx, name); err != nil {
		return err
	}
	_, err := s.Admin.Exec(ctx, "create database "+pgx.Identifier{name}.Sanitize()+" template template0")
	return err
}

// Drop removes a database, if it is there, whoever is connected to it.
func (s *Server) Drop(ctx context.Context, name string) error {
	_, err := s.Admin.Exec(ctx, "drop database if exists "+pgx.Identifier{name}.Sanitize()+" with (force)")
	return err
}

// Exec executes one statement in a database.
func (s *Server) Exec(ctx context.Context, database, sql string, args ...any) error {
	conn, err := s.connect(ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql, args...)
	return err
}

// Int is the one number that a query returns.
func (s *Server) Int(ctx context.Context, database, sql string, args ...any) (n int64, err error) {
	conn, err := s.connect(ctx, database)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	return n, conn.QueryRow(ctx, sql, args...).Scan(&n)
}

func (s *Server) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, s.DSN(database, ""))
}

// CreateIfMissing makes an empty database, or leaves the one that is there.
func (s *Server) CreateIfMissing(ctx context.Context, name string) error {
	var there bool
	err := s.Admin.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", name).Scan(&there)
	if err != nil || there {
		return err
	}
	return s.Recreate(ctx, name)
}
