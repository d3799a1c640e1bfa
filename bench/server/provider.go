package server

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
)

// A Provider charges cards, and keeps idempotency keys as payment providers do: a request
// whose key it knows gets the same answer, and charges nothing. The body of a request is
// what it is counted by.
type Provider struct {
	server *httptest.Server

	mu       sync.Mutex
	answers  map[string]string // by idempotency key
	charges  map[string]int
	requests map[string]int
	lose     map[string]bool // the next answer
}

// StartProvider starts one on this machine.
func StartProvider() *Provider {
	p := &Provider{answers: map[string]string{}, charges: map[string]int{}, requests: map[string]int{}, lose: map[string]bool{}}
	p.server = httptest.NewServer(p)
	return p
}

func (p *Provider) Close() {
	p.server.CloseClientConnections() // of processes that were killed
	p.server.Close()
}

// URL is where it is asked.
func (p *Provider) URL() string { return p.server.URL }

// LoseNext has the connection cut in the middle of the next answer, behind the charge: a
// client of net/http sends the request again by itself when there is nothing of an answer.
func (p *Provider) LoseNext(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose[id] = true
}

// Count returns how often it was charged and how often asked.
func (p *Provider) Count(id string) (charges, requests int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.charges[id], p.requests[id]
}

func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	key := r.Header.Get("Idempotency-Key")
	if err != nil || key == "" {
		http.Error(w, "a request has an Idempotency-Key", http.StatusBadRequest)
		return
	}
	answer, lost := p.charge(key, string(body))
	if lost {
		w.Header().Set("Content-Length", fmt.Sprint(len(answer)+1))
	}
	io.WriteString(w, answer)
}

func (p *Provider) charge(key, id string) (answer string, lost bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests[id]++
	answer, known := p.answers[key]
	if !known {
		p.charges[id]++
		answer = fmt.Sprintf("charge %d of %s", p.charges[id], id)
		p.answers[key] = answer
	}
	lost = p.lose[id]
	delete(p.lose, id)
	return answer, lost
}
