package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/idemweb"
	"github.com/pgidem/idempotency/internal/visible"
)

var web = &command{
	name:    "web",
	summary: "serve the operators' page: find a key, what is in flight, the table's health",
	text: `It serves package idemweb until it is interrupted, and ends with exit code 0 then. There
is no login: whoever can connect sees the keys of all scopes. So it listens on this
machine alone, unless -listen says otherwise; to look from elsewhere, use a tunnel such as
ssh -L, or mount idemweb behind the login of a program of yours. Nobody can delete, or see
what was recorded, without -delete and -show-results. -timeout is for the first look at
the database; a page gives up by itself.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		w := &website{database: db}
		fs.StringVar(&w.listen, "listen", "127.0.0.1:8091", "the `ADDRESS` to listen on; port 0 takes a free one")
		fs.BoolVar(&w.deletes, "delete", false, "let everybody who can connect delete records")
		fs.BoolVar(&w.results, "show-results", false, "let everybody who can connect see what was recorded")
		fs.StringVar(&w.trace, "trace", "", "`URL` of a trace's page, with {trace} or {origin} in it")
		return func(ctx context.Context, std stdio, _ []string) error { return w.serve(ctx, std) }
	},
}

// A website is the page, and where it is served.
type website struct {
	*database
	listen, trace    string
	deletes, results bool
}

// serve fails at once where the database cannot be asked, or the address is taken.
func (w *website) serve(ctx context.Context, std stdio) error {
	return w.connect(ctx, func(pool *pgxpool.Pool) error {
		handler, err := w.handler(pool)
		if err != nil {
			return usageError{"-trace: " + strings.TrimPrefix(err.Error(), "idemweb: Config.Trace "), true}
		}
		err = w.within(ctx, pool, w.located(func(context.Context, *pgxpool.Pool) error { return nil }))
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", w.listen)
		if err != nil {
			return fmt.Errorf("-listen: %w", err)
		}
		if local(listener.Addr()) {
			handler = onlyFor(hosts(w.listen), handler)
		} else {
			fmt.Fprintf(std.err, "idempotency: warning: %s can be reached from other machines, and there is no login: whoever connects sees the keys of all scopes%s\n",
				listener.Addr(), w.rights())
		}
		fmt.Fprintf(std.out, "http://%s/\n", listener.Addr())
		return serveUntil(ctx, listener, handler)
	})
}

func (w *website) handler(pool *pgxpool.Pool) (http.Handler, error) {
	store, err := w.store(pool, nil)
	if err != nil {
		return nil, err
	}
	cfg := idemweb.Config{Trace: w.trace}
	everybody := func(*http.Request) bool { return true }
	if w.deletes {
		cfg.Delete = everybody
	}
	if w.results {
		cfg.Results = everybody
	}
	return idemweb.New(store, cfg)
}

// rights are what else the flags allow.
func (w *website) rights() (text string) {
	if w.results {
		text += ", and what was recorded"
	}
	if w.deletes {
		text += ", and can delete"
	}
	return text
}

// A request may take as long as a page may, and a browser that it is slow.
const (
	headerTime = 10 * time.Second
	writeTime  = 30 * time.Second
	endTime    = 5 * time.Second
)

// serveUntil ends well when ctx does: requests under way are answered.
func serveUntil(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTime, ReadTimeout: headerTime, WriteTimeout: writeTime, IdleTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	if server.Shutdown(bounded) != nil {
		return server.Close()
	}
	return nil
}

// local reports whether nobody else than this machine can connect.
func local(address net.Addr) bool {
	tcp, ok := address.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// hosts are the names by which a browser on this machine may call the page.
func hosts(listen string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, _, err := net.SplitHostPort(listen); err == nil && host != "" {
		names = append(names, host)
	}
	return names
}

// onlyFor refuses a request with another name. A site on the Internet can let its own name
// lead to this machine (DNS rebinding): to a browser the page is then one of that site,
// whose scripts may read it.
func onlyFor(names []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if !slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, strings.Trim(host, "[]")) }) {
			http.Error(w, "This page is for this machine alone, and not for the name "+visible.Text(host)+".", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
