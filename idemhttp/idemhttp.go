// Package idemhttp gives an HTTP API idempotency keys: a request that is sent
// again with the same key has one effect, and gets the response of the first.
// The response is recorded in the transaction that the handler writes in, so
// there is no crash after which one of the two is missing.
//
// For most servers, [New] and [Middleware.Atomic] are all you need:
//
//	idem, err := idemhttp.New(store, idemhttp.Config{Scope: accountOf})
//	mux.Handle("POST /charges", idem.Atomic(
//		func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
//			...
//		}))
//
// The key comes in the Idempotency-Key header field as in
// draft-ietf-httpapi-idempotency-key-header-07. That is an expired draft, and
// no standard.
package idemhttp

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// Config is the configuration of a Middleware. Only Scope is required; the zero
// value of each other field means its default.
type Config struct {
	// Scope says whose key it is: the account, tenant or user that sends the
	// request, 1 to 255 bytes. It has no default, because in a key space that
	// clients share each can be given the responses of the others.
	//
	// A retry gets the recorded response without the handler being asked: what
	// the handler would check of its sender, such as a role, belongs in front of
	// the Middleware, or into the scope.
	//
	// An empty scope is refused with 403, and one that is too long or no text
	// with 400: authentication, and its 401 with the challenge that only it knows,
	// belong in front of the Middleware. An error is reported, and answered with
	// 500. The request is a copy, whose body can be read.
	Scope func(*http.Request) (string, error)

	// Header is the request header field that carries the key. Default:
	// Idempotency-Key.
	Header string

	// Key takes the key from elsewhere than Header, such as the event id in the
	// body of a webhook. An empty key is none (see Optional). An error is
	// answered with 400, and its text is sent to the client. The body must not
	// be changed. Default: the Header.
	Key func(r *http.Request, body []byte) (string, error)

	// Optional lets requests without a key through. They are executed as the
	// others are, under a key of their own that nobody can send again. For
	// other routes, make another Middleware. Default: 400.
	Optional bool

	// Methods that are executed under a key, in upper case. A request of another
	// method passes through, unless it carries a key in Header. Safe ones, such as
	// GET, always do. Default: POST, PATCH, and all that are not known to be
	// idempotent (RFC 9110, section 9.2.2), so that PUT and DELETE pass through
	// without a key.
	Methods []string

	// MaxKeyLength is how many characters a key can have, at most 255, which is
	// the default.
	MaxKeyLength int

	// MaxRequestBody is the size of the largest request body, in bytes; a
	// larger one is 413. The body is read, whole, before the key is claimed.
	// Default: 1 MiB.
	MaxRequestBody int64

	// MaxRecord is the size of the largest response that is recorded whole, in
	// bytes of the JSON that it is stored as. Of a larger one the status and
	// the header are recorded, and a replay says so with
	// "Idempotent-Body-Omitted: true"; the first client gets all of it. It
	// cannot be more than the MaxResult of the Store, which is the default.
	MaxRecord int

	// Record decides whether a response is final: then it is recorded, and the
	// transaction commits. Any other is sent, but everything is rolled back, and
	// the next request with the key is executed. It must not change the header
	// or the trailer. A handler can also decide by itself: see RollBack.
	// Default: Final.
	Record func(status int, header, trailer http.Header) bool

	// KeepHeaders and DropHeaders change which header fields a replay has. By
	// default all but those of one exchange, such as Date, Set-Cookie, RateLimit
	// and tracing ids, and but secrets, such as all that end in Token, except those
	// of pages; what is dropped is not recorded either. A star stands for any
	// beginning or ending: "X-Debug-*", "*-Card-Token".
	KeepHeaders, DropHeaders []string

	// FingerprintHeaders are the request header fields that make a request
	// another one; Host can be one. Default, where it is nil, are those that say
	// what a body means: Content-Type, Content-Encoding, Content-Language,
	// Content-Disposition and Content-Range.
	FingerprintHeaders []string

	// Fingerprint identifies what a request asks for; a key that comes with
	// another one is 422. Default: method, path, query, FingerprintHeaders and
	// the body, where JSON documents that say the same are equal, and so are
	// multipart bodies with another boundary; of more than 1,000 parts or 10,000
	// header lines, of JSON deeper than 128, and of a Content-Type of more than
	// 4,096 bytes, every byte counts. A client that signs its URLs needs
	// a function of your own.
	Fingerprint func(r *http.Request, body []byte) idempotency.Fingerprint

	// FingerprintKeys make an HMAC-SHA-256 of each fingerprint, so that who reads
	// the table cannot find out by trial what was sent. The first makes them; what
	// was made with another, or with none, is recognised. So a key is replaced in
	// three steps, each in every process: it is added as the last; it becomes the
	// first; after a retention, the old one goes. An empty key is none, and is the
	// old one where there was no key. Others have 16 bytes or more. Default: none.
	FingerprintKeys [][]byte

	// FinishDisconnected lets a handler that has begun finish, and its response
	// be recorded, when its client disconnects; a deadline of the request's
	// context stays. Default: its context ends, and everything is rolled back.
	FinishDisconnected bool

	// Documentation is the absolute URL of what clients should read. Every
	// problem links to it.
	Documentation string

	// WriteError answers a request that went wrong before, instead of or after
	// its handler. It can change the Problem, and send it as it is sent by
	// default (Problem.ServeHTTP), or write a format of its own.
	WriteError func(http.ResponseWriter, *http.Request, Problem)

	// Report is called with what is behind a 500 or 503 of the Middleware's
	// own. Default: it is logged with slog.
	Report func(*http.Request, error)
}

func (c Config) withDefaults(store idempotency.Config) Config {
	c.Header = http.CanonicalHeaderKey(cmp.Or(c.Header, "Idempotency-Key"))
	c.MaxKeyLength = cmp.Or(c.MaxKeyLength, 255)
	c.MaxRequestBody = cmp.Or(c.MaxRequestBody, 1<<20)
	c.MaxRecord = cmp.Or(c.MaxRecord, store.MaxResult)
	if c.Methods == nil {
		c.Methods = []string{http.MethodPost, http.MethodPatch}
	}
	c.FingerprintKeys = slices.Clone(c.FingerprintKeys)
	for i, key := range c.FingerprintKeys {
		c.FingerprintKeys[i] = slices.Clone(key)
	}
	if c.FingerprintHeaders == nil {
		c.FingerprintHeaders = fingerprintHeaders
	}
	c.FingerprintHeaders = slices.Clone(c.FingerprintHeaders)
	if c.Record == nil {
		c.Record = func(status int, _, _ http.Header) bool { return Final(status) }
	}
	if c.WriteError == nil {
		c.WriteError = func(w http.ResponseWriter, r *http.Request, p Problem) { p.ServeHTTP(w, r) }
	}
	if c.Report == nil {
		c.Report = func(r *http.Request, err error) {
			slog.ErrorContext(r.Context(), "idemhttp: request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		}
	}
	return c
}

func (c Config) validate(store idempotency.Config) error {
	problem := ""
	switch {
	case c.Scope == nil:
		problem = "Scope is nil: without it clients would share their keys, and be given each other's responses"
	case !isToken(c.Header):
		problem = fmt.Sprintf("Header is %q: it has to be the name of a header field", c.Header)
	case c.MaxKeyLength < 1 || c.MaxKeyLength > 255:
		problem = fmt.Sprintf("MaxKeyLength is %d: it has to be 1 to 255", c.MaxKeyLength)
	case c.MaxRequestBody < 1:
		problem = fmt.Sprintf("MaxRequestBody is %d: it has to be a byte or more", c.MaxRequestBody)
	case c.MaxRecord < minRecord:
		problem = fmt.Sprintf("MaxRecord is %d: it has to be %d bytes or more, which the status takes", c.MaxRecord, minRecord)
	case c.MaxRecord > store.MaxResult:
		problem = fmt.Sprintf("MaxRecord is %d: the Store takes at most %d (its MaxResult)", c.MaxRecord, store.MaxResult)
	case slices.ContainsFunc(c.Methods, isSafe):
		problem = fmt.Sprintf("Methods is %q: a method without effects passes through always", c.Methods)
	case len(c.Methods) == 0 || slices.ContainsFunc(c.Methods, func(m string) bool { return m != strings.ToUpper(m) }):
		problem = fmt.Sprintf("Methods is %q: requests would pass through unprotected, since methods are upper case (RFC 9110, section 9.1)", c.Methods)
	case slices.ContainsFunc(c.FingerprintKeys, func(key []byte) bool { return len(key) > 0 && len(key) < 16 }):
		problem = "FingerprintKeys is not usable: a key has to have 16 bytes or more, or none"
	case !isLink(c.Documentation):
		problem = fmt.Sprintf("Documentation is %q: it has to be an absolute URL", c.Documentation)
	default:
		return nil
	}
	return errors.New("idemhttp: Config." + problem)
}

func isLink(text string) bool {
	u, err := url.Parse(text)
	return text == "" || err == nil && u.IsAbs() && !strings.ContainsAny(text, `<>" `)
}

// A Middleware executes requests under their idempotency keys. It is safe for
// concurrent use; several can share one Store.
type Middleware struct {
	store *idempotency.Store
	cfg   Config // with its defaults

	unknownMethods bool // are protected: Config.Methods is the default
}

// New returns a Middleware, or an error that names the field of cfg that cannot
// be used.
func New(store *idempotency.Store, cfg Config) (*Middleware, error) {
	if store == nil {
		return nil, errors.New("idemhttp: store is nil")
	}
	m := &Middleware{
		store: store, cfg: cfg.withDefaults(store.Config()),
		unknownMethods: cfg.Methods == nil,
	}
	if err := m.cfg.validate(store.Config()); err != nil {
		return nil, err
	}
	return m, nil
}

// Handler executes next, once per key, in a transaction that next gets with
// [Tx], and records its response in the same transaction. A retry gets the
// recorded response with "Idempotent-Replayed: true", and next is not run.
//
// What next writes is held back until the transaction has committed; if it
// cannot commit, the client gets an error instead. By the outcome:
//   - the response is final (see [Config.Record]): it is recorded, everything
//     commits, it is sent.
//   - the response is not final, such as a 500: everything is rolled back, it is
//     sent, and the next request with the key is executed.
//   - next panics, also with [http.ErrAbortHandler]: everything is rolled back,
//     nothing is sent, and the panic goes on to the server.
//   - the client disconnects: see [Config.FinishDisconnected].
//   - the process dies: nothing is kept, and the key is free.
//
// Next must have no effects except through its transaction, and can be run
// again, with the same request and a new response, after a serialization
// failure, a deadlock or a lost connection. What cannot be run again fails with
// 500, and nothing is kept. Next must not end the transaction; Commit and
// Rollback are refused without any effect. What it leaves behind when it returns,
// such as a goroutine, has no transaction any more; a statement that is being
// executed then is waited for.
//
// A response is buffered whole, so Flush sends nothing and 1xx responses are
// dropped. What cannot be recorded is refused: Hijack is an error, and 101,
// text/event-stream or gRPC make the request fail with 500.
//
// Requests of other methods than [Config.Methods], without a key, pass through to
// next as they are; so does everything inside of another Middleware, whose key
// and transaction hold.
func (m *Middleware) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !m.protects(r) {
			next.ServeHTTP(w, r)
			return
		}
		m.serve(w, r, next)
	})
}

// Atomic is [Middleware.Handler] for a function that takes the transaction. It
// is never called without one: other methods than [Config.Methods] are 405.
func (m *Middleware) Atomic(handle func(http.ResponseWriter, *http.Request, pgx.Tx)) http.Handler {
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handle(w, r, Tx(r.Context()))
	})
	return m.always(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, next) })
}

// always refuses the methods that would not be executed under a key.
func (m *Middleware) always(serve http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(m.cfg.Methods, r.Method) {
			w.Header().Set("Allow", strings.Join(m.cfg.Methods, ", "))
			m.refuse(w, r, *notProtected.because("It takes %s.", strings.Join(m.cfg.Methods, ", ")))
			return
		}
		serve(w, r)
	})
}
