package demo

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
)

// A proxy is the bad network between the customers and the service. It takes
// each request to one of the two processes, in turn. After the service has
// executed it and answered, the answer may get lost, and the connection with it:
// whole, or in the middle of the body. The customer cannot know what happened.
type proxy struct {
	url    string
	server *http.Server

	mu       sync.Mutex
	backends []string
	requests int
	toLose   map[string]int // how many answers to come, by the key of the request
	lost     []string       // the keys of those that were lost
}

func startProxy() (*proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{url: "http://" + listener.Addr().String(), toLose: make(map[string]int)}
	quiet := log.New(io.Discard, "", 0) // it reports the failures that it makes
	p.server = &http.Server{ErrorLog: quiet, Handler: &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(p.next()) },
		ModifyResponse: p.answer,
		FlushInterval:  -1, // so that the half of an answer is sent
		// A connection each: one that is kept would have net/http repeat
		// requests by itself when a process is gone.
		Transport: &http.Transport{DisableKeepAlives: true},
		ErrorLog:  quiet,
	}}
	go p.server.Serve(listener)
	return p, nil
}

func (p *proxy) close() { p.server.Close() }

// send tells where the processes are.
func (p *proxy) send(addresses ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backends = addresses
}

func (p *proxy) next() *url.URL {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	return &url.URL{Scheme: "http", Host: p.backends[p.requests%len(p.backends)]}
}

// seen is how many requests have come.
func (p *proxy) seen() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// lose decides how many answers to an order will get lost.
func (p *proxy) lose(key string, answers int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.toLose[key] = answers
}

// takeLost returns the keys of the answers that were lost.
func (p *proxy) takeLost() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost := p.lost
	p.lost = nil
	return lost
}

// answer sees each response of the service.
func (p *proxy) answer(resp *http.Response) error {
	key := plainKey(resp.Request.Header)
	switch p.fate(key) {
	case whole:
		panic(http.ErrAbortHandler) // closes the connection without a word
	case half:
		resp.Body = &torn{resp.Body, resp.ContentLength / 2}
	}
	return nil
}

type fate int

const (
	none fate = iota
	whole
	half
)

// fate loses every other answer in the middle.
func (p *proxy) fate(key string) fate {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.toLose[key] == 0 {
		return none
	}
	p.toLose[key]--
	p.lost = append(p.lost, key)
	return []fate{whole, half}[len(p.lost)%2]
}

// A torn body breaks off after some bytes.
type torn struct {
	io.ReadCloser
	left int64
}

func (t *torn) Read(b []byte) (int, error) {
	if t.left <= 0 {
		return 0, errors.New("the connection breaks")
	}
	n, err := t.ReadCloser.Read(b[:min(int64(len(b)), t.left)])
	t.left -= int64(n)
	return n, err
}

// plainKey is the key of a request of our client, without its quotes.
func plainKey(h http.Header) string {
	return string(slices.DeleteFunc([]byte(h.Get("Idempotency-Key")), func(c byte) bool { return c == '"' }))
}
