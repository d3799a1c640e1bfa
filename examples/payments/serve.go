package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/examples/payments/demo"
)

// serve is the life of the process. It ends after ctx does, when the requests
// that were being served have got their responses.
func serve(ctx context.Context, cfg config, out, logs io.Writer) error {
	log := slog.New(slog.NewJSONHandler(logs, nil))
	pool, err := connect(ctx, cfg.Database)
	if err != nil {
		return err
	}
	defer pool.Close() // last: waits for every connection
	if err := prepare(ctx, pool, cfg); err != nil {
		return readable(err)
	}
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Observe: logBackground(log)})
	if err != nil {
		return err
	}
	ride := rideWith(newCardProvider(cfg.Provider))
	handler, err := newAPI(pool, store, ride, cfg, log)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return err
	}
	var background sync.WaitGroup
	defer background.Wait()
	ctx, stop := context.WithCancel(ctx) // before the Wait, also when serving fails
	defer stop()
	background.Go(func() { purgeUntil(ctx, store, log) })
	background.Go(func() { completeUntil(ctx, store, cfg.Abandoned, ride, log) })
	log.Info("listening", "address", listener.Addr().String())
	if cfg.Examples {
		fmt.Fprintln(out, "Try it in another terminal; Ctrl-C here ends the service:")
		demo.PrintExamples(out, listener.Addr().String())
	}
	return serveUntil(ctx, newServer(handler, log), listener, cfg.Drain, log)
}

// errUnreadable quotes nothing: where a connection string is malformed, nobody can
// tell the password from the rest, and pgx's errors show too much of it.
var errUnreadable = errors.New("the connection string of the database cannot be read: it has to be postgres://USER:PASSWORD@HOST:PORT/DATABASE, with %40 for @ and %2F for / in the password")

// readable is err, unless the server has been sent a parameter that it does not know:
// that is what pgx makes of the rest of a password with a space in it.
func readable(err error) error {
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == "42704" {
		return errUnreadable
	}
	return err
}

// connect makes the pool, which connects when it is used. An @ in the host, or behind it in
// a URL, was in the password.
func connect(ctx context.Context, database string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(database)
	_, rest, isURL := strings.Cut(database, "://")
	behind := strings.TrimLeftFunc(rest, func(r rune) bool { return !strings.ContainsRune("/?#", r) })
	if err != nil || strings.Contains(cfg.ConnConfig.Host+cfg.ConnConfig.Database, "@") || isURL && strings.Contains(behind, "@") {
		return nil, errUnreadable
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

func prepare(ctx context.Context, pool *pgxpool.Pool, cfg config) error {
	if cfg.Migrate {
		if err := migrateUp(ctx, pool); err != nil {
			return err
		}
	}
	if cfg.Examples {
		return openExamples(ctx, pool)
	}
	return nil
}

// requestLimit is how long a request may take: a duplicate waits 10 seconds for
// the first, and a commit in doubt can take 30 to find out. One that takes even
// longer has its answer cut off, and its client asks again.
const requestLimit = 45 * time.Second

// newServer has a limit for everything that a client can be slow at. Net/http
// has none by default.
func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10*time.Second + requestLimit + 5*time.Second, // counts from the end of the header
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelError),
	}
}

// serveUntil serves until ctx ends. Then it takes no new requests, and waits for
// those that run, but no longer than drain: what has not finished by then is
// rolled back, and its client sends it again, to another process.
//
// The requests do not inherit ctx: it would end them instead.
func serveUntil(ctx context.Context, server *http.Server, listener net.Listener, drain time.Duration, log *slog.Logger) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	log.Info("shutting down", "cause", context.Cause(ctx).Error())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("requests still ran after %v, and were ended: %w", drain, err), server.Close())
	}
	log.Info("shut down")
	return nil
}
