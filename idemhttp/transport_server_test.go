package idemhttp

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A scriptedServer gives one answer after the other, and the last one from
// then on, over real sockets. It keeps what has arrived.
type scriptedServer struct {
	*httptest.Server
	base *http.Transport

	mu       sync.Mutex
	answers  []handler
	arrivals []arrival
	conns    int
}

type handler = func(http.ResponseWriter, *http.Request)

type arrival struct {
	method string
	lines  []string // of the key's field
	body   string
}

func serve(t *testing.T, answers ...handler) *scriptedServer {
	return start(t, false, false, answers)
}

func serveTLS(t *testing.T, http2 bool, answers ...handler) *scriptedServer {
	return start(t, true, http2, answers)
}

func start(t *testing.T, tls, http2 bool, answers []handler) *scriptedServer {
	t.Helper()
	s := &scriptedServer{answers: answers, base: &http.Transport{}}
	s.Server = httptest.NewUnstartedServer(s)
	s.Listener = resettingListener{s.Listener, s}
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.conns++
		}
	}
	if tls {
		s.StartTLS()
		s.base = s.Server.Client().Transport.(*http.Transport)
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		s.base.CloseIdleConnections()
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// client repeats without pauses.
func (s *scriptedServer) client() *http.Client {
	return &http.Client{Transport: &Transport{Base: s.base, sleep: noSleep}}
}

func noSleep(ctx context.Context, _ time.Duration) error { return ctx.Err() }

func (s *scriptedServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.arrivals = append(s.arrivals, arrival{r.Method, r.Header.Values("Idempotency-Key"), string(body)})
	s.mu.Unlock()
	next, thenResets := s.next()
	if next == nil {
		panic("the script wanted a reset, and a connection was used again")
	}
	if thenResets {
		w.Header().Set("Connection", "close")
	}
	next(w, r)
}

// next takes the answer that is due, and says whether a reset comes after it.
func (s *scriptedServer) next() (now handler, thenResets bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
		thenResets = s.answers[0] == nil
	}
	return now, thenResets
}

// resetIsDue takes a reset off the script.
func (s *scriptedServer) resetIsDue() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := s.answers[0] == nil
	if due && len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
	return due
}

// reset is the answer that resets the connection before anything is read.
var reset handler

type resettingListener struct {
	net.Listener
	script *scriptedServer
}

func (l resettingListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || !l.script.resetIsDue() {
			return conn, err
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
}

func (s *scriptedServer) seen() []arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.arrivals)
}

func (s *scriptedServer) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// sameKeyAndBody checks that all arrivals, want of them unless it is negative,
// have one field, with the same key, and the body.
func (s *scriptedServer) sameKeyAndBody(t *testing.T, want int, body string) {
	t.Helper()
	seen := s.seen()
	if len(seen) == 0 || want >= 0 && len(seen) != want {
		t.Fatalf("%d requests arrived", len(seen))
	}
	for _, a := range seen {
		if len(a.lines) != 1 || a.lines[0] != seen[0].lines[0] || a.body != body {
			t.Errorf("%+v arrived after %+v, with body %q", a, seen[0], body)
		}
	}
}

func answer(status int, header ...string) handler {
	return func(w http.ResponseWriter, r *http.Request) {
		for pair := range slices.Chunk(header, 2) {
			w.Header().Set(pair[0], pair[1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "status "+strconv.Itoa(status))
	}
}

func closeAfterRequest(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// stall never ends the body of its response.
func stall(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// breakOff sends the bytes, and closes the connection.
func breakOff(response string) handler {
	return func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, response)
		_ = conn.Close()
	}
}

// closedAddress is where nobody listens.
func closedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func post(t *testing.T, url, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(body)
}

// check takes what Do has returned, and closes the response after the test.
func check(t *testing.T, resp *http.Response, err error, status, attempts int) {
	t.Helper()
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	key, n := Sent(resp, err)
	if resp.StatusCode != status || n != attempts || key == "" {
		t.Errorf("the answer is %s after %d attempts with key %q, want %d after %d", resp.Status, n, key, status, attempts)
	}
}

func checkError(t *testing.T, err error, attempts int, contains string) {
	t.Helper()
	if err == nil {
		t.Error("there is no error")
		return
	}
	key, n := Sent(nil, err)
	if n != attempts || key == "" || !strings.Contains(err.Error(), contains) {
		t.Errorf("the error, of %d attempts with key %q, is\n\t%v, want %d and\n\t%q", n, key, err, attempts, contains)
	}
}

// A body knows whether it was closed.
type body struct {
	io.Reader
	closed chan struct{}
	once   sync.Once
}

func newBody(text string) *body {
	return &body{Reader: strings.NewReader(text), closed: make(chan struct{})}
}

func (b *body) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// mustClose waits: a RoundTripper may close a body after it has returned.
func (b *body) mustClose(t *testing.T) {
	t.Helper()
	select {
	case <-b.closed:
	case <-time.After(10 * time.Second):
		t.Error("the body is not closed")
	}
}
