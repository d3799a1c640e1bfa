package failover

import (
	"strconv"
	"sync"
	"testing"

	"github.com/pgidem/idempotency/internal/pgproxy"
)

// A Link is the network from the primary to the standby.
type Link struct {
	proxy *pgproxy.Proxy
	mu    sync.Mutex
	held  chan struct{} // nil: the link is open; closed at the end of a hold
	lost  bool
}

func newLink(t testing.TB, primary *Server) *Link {
	l := &Link{proxy: pgproxy.New(t, "tcp", primary.Address())}
	l.proxy.SetRule(l.pass)
	t.Cleanup(l.Cut) // before the proxy is closed, which waits for what is held
	return l
}

func (l *Link) port() string { return strconv.Itoa(int(l.proxy.Port())) }

// pass decides on each message of the replication.
func (l *Link) pass(m pgproxy.Message) pgproxy.Verdict {
	const copyData = 'd' // write-ahead log, and keepalives
	if m.FromServer && m.Type == copyData {
		l.mu.Lock()
		held := l.held
		l.mu.Unlock()
		if held != nil {
			<-held
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		return pgproxy.Drop
	}
	return pgproxy.Pass
}

// Hold keeps everything that the primary sends, until Release or Cut.
func (l *Link) Hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = make(chan struct{})
}

// Release delivers what was held, and opens the link again.
func (l *Link) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held != nil {
		close(l.held)
		l.held = nil
	}
}

// Cut loses what was held and what is still sent, for ever.
func (l *Link) Cut() {
	l.mu.Lock()
	l.lost = true
	l.mu.Unlock()
	l.Release()
	l.proxy.CutAll()
}
