package idemtest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// holdBound is how long a request is held for another attempt to meet it.
	holdBound = 5 * time.Second

	// maxLost is how many answers are lost at most: a client may try again by itself.
	maxLost = 5
)

// A provider is an HTTP server that keeps idempotency keys, as a payment provider does.
type provider struct {
	*httptest.Server
	s      *procedureStorm
	answer http.HandlerFunc
	keyOf  func(*http.Request) string

	mu   sync.Mutex
	keys map[string]*kept
	made int // effects
}

// A kept key.
type kept struct {
	request [sha256.Size]byte
	working bool
	answer  *httptest.ResponseRecorder
}

// A request is one to the provider.
type request struct {
	place
	key    string
	what   string // method and path
	effect bool   // it was carried out
	status int    // of the answer; 0: it was lost
}

func newProvider(t testing.TB, s *procedureStorm, answer http.HandlerFunc, keyOf func(*http.Request) string) *provider {
	p := &provider{s: s, answer: answer, keyOf: keyOf, keys: make(map[string]*kept)}
	if p.answer == nil {
		p.answer = p.answerID
	}
	if p.keyOf == nil {
		p.keyOf = func(r *http.Request) string { return strings.Trim(r.Header.Get("Idempotency-Key"), `"`) }
	}
	p.Server = httptest.NewServer(p)
	t.Cleanup(func() { p.CloseClientConnections(); p.Close() })
	return p
}

// answerID is called with the mutex.
func (p *provider) answerID(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"id": "effect-%d"}`, p.made)
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if safe(r.Method) {
		p.answer(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client has gone
	}
	rewind := func() { r.Body = io.NopCloser(bytes.NewReader(body)) }
	scene := p.s.scene.Load()
	q := request{place: p.s.place(scene), what: r.Method + " " + r.URL.Path}
	rewind()
	q.key = p.keyOf(r)
	rewind()
	k, status := p.take(r, &q, body)
	fault := scene.note(&q, status)
	if k == nil {
		http.Error(w, "refused", status)
		return
	}
	defer p.release(k)
	switch fault {
	case "held":
		p.s.proxy.CutAll()
		scene.hold(r)
		cut(w) // the one that came meanwhile was refused: somebody has to ask again
		return
	case "lost":
		cut(w)
		return
	}
	for name, values := range k.answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(k.answer.Code)
	_, _ = w.Write(k.answer.Body.Bytes()) // else the client has gone
}

// cut ends the connection behind the first byte of an answer: where there is none, net/http
// sends a request that has an Idempotency-Key again by itself.
func cut(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_, _ = conn.Write([]byte("H"))
	_ = conn.Close()
}

func safe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// take carries the request out, or finds what was answered to its key, or refuses it: then
// there is no kept key.
func (p *provider) take(r *http.Request, q *request, body []byte) (k *kept, status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := sha256.Sum256([]byte(q.what + "\n" + r.URL.RawQuery + "\n" + string(body)))
	k = p.keys[q.key]
	switch {
	case q.key == "" || k == nil:
		k = &kept{request: sum, answer: httptest.NewRecorder()}
		p.keys[q.key] = k
		q.effect = true
		p.made++
		p.answer(k.answer, r)
	case k.request != sum:
		return nil, http.StatusUnprocessableEntity
	case k.working:
		return nil, http.StatusConflict
	}
	k.working = true
	return k, k.answer.Code
}

func (p *provider) release(k *kept) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.working = false
}

// note keeps what is seen of the request, and returns what happens to its answer.
func (c *scene) note(q *request, status int) (fault string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.status = status
	defer func() {
		if fault != "" {
			q.status = 0
		}
		c.requests = append(c.requests, *q)
	}()
	if c.fault.at == "held" && c.met {
		c.meet()
	}
	if status == http.StatusConflict || status == http.StatusUnprocessableEntity || q.kind != inCall || q.begun != c.fault.label {
		return ""
	}
	switch {
	case c.fault.at == "held" && !c.met:
		c.met = true
		return "held"
	case c.fault.at == "lost" && (c.lost == 0 || c.loser == c.begun && c.lost < maxLost):
		c.loser = c.begun
		c.lost++
		return "lost"
	}
	return ""
}

// meet ends the wait of hold: another request has come.
func (c *scene) meet() {
	select {
	case <-c.second:
	default:
		close(c.second)
	}
}

// hold waits for another attempt's request.
func (c *scene) hold(r *http.Request) {
	select {
	case <-c.second:
	case <-r.Context().Done():
	case <-time.After(holdBound):
	}
}
