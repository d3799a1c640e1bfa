// Package idemweb shows an operator what became of a key: a handler to mount behind a login
// of one's own.
//
//	page, err := idemweb.New(store, idemweb.Config{})
//	mux.Handle("/idempotency/", login(page))
//
// It shows the keys of all scopes, changes nothing unless [Config.Delete] allows it, and
// shows no result unless [Config.Results] does. It asks nobody who they are: whoever reaches
// the handler sees the page. docs/web.md says what each page shows and what it costs.
package idemweb

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/storepool"
)

// Config is who may do more than look, and where the traces are. The zero value shows what
// can be shown to support.
type Config struct {
	// Delete reports whether whoever sends the request may delete the record of a key, so
	// that its next call runs again. It is asked for each page with a button for it, and
	// again before the deletion; a request that is refused gets 403. Default: nobody may.
	Delete func(*http.Request) bool

	// Results reports whether whoever sends the request may see what was recorded, of which
	// the first 64 kB are shown, on demand. It can be confidential. Default: nobody may.
	Results func(*http.Request) bool

	// Trace is the URL of the page of one trace, with {trace} where its id belongs, which is
	// taken from an origin that is a W3C traceparent; or with {origin} for the whole origin,
	// whatever Config.Trace of the Store has said. Both can stand in the path, the query and
	// the fragment. Only http and https are allowed. For example
	// "https://jaeger.example.com/trace/{trace}". Default: the origin is shown without a link.
	Trace string
}

// validate has sentences that begin with the field's name.
func (c Config) validate() error {
	if c.Trace == "" {
		return nil
	}
	u, err := url.Parse(strings.NewReplacer(tracePlace, "0", originPlace, "0").Replace(c.Trace))
	switch {
	case err != nil:
		return errors.New("Config.Trace is not a URL")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("Config.Trace %q has to begin with http:// or https:// and a host", c.Trace)
	case !strings.Contains(c.Trace, tracePlace) && !strings.Contains(c.Trace, originPlace):
		return fmt.Errorf("Config.Trace %q has neither %s nor %s", c.Trace, tracePlace, originPlace)
	}
	_, rest, _ := strings.Cut(c.Trace, "://")
	if strings.ContainsAny(rest[:strings.IndexAny(rest+"/", "/?#")], "{}") {
		return fmt.Errorf("Config.Trace %q has %s or %s in the host, which an origin would choose", c.Trace, tracePlace, originPlace)
	}
	return nil
}

// New returns the handler of the page for the keys of store, whose pool it uses, at most two
// connections of it at a time. It finds its pages by the last part of the path, so that it
// can be mounted below any path that ends in a slash. It starts nothing and asks nothing
// before a request comes.
func New(store *idempotency.Store, cfg Config) (http.Handler, error) {
	if store == nil {
		return nil, errors.New("idemweb: the Store is nil")
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("idemweb: %w", err)
	}
	s := &site{
		store: store,
		pool:  storepool.Of(store),
		table: inspect.Table{Schema: store.Config().Schema},
		cfg:   cfg,
		turns: make(chan struct{}, turns),
	}
	same := http.NewCrossOriginProtection()
	same.SetDenyHandler(http.HandlerFunc(s.refuseOrigin))
	return guarded(same.Handler(s)), nil
}

// A site is the handler behind its protections.
type site struct {
	store *idempotency.Store
	pool  *pgxpool.Pool
	table inspect.Table
	cfg   Config
	turns chan struct{} // filled by those who have a connection, or wait for one
}
