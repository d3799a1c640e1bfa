// Package pgproxy stands between a client and PostgreSQL, counts what passes,
// and breaks the connection at an exact message. It is for the tests of this
// repository, and for those of its users through package idemtest.
package pgproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// A Proxy listens on a loopback port.
type Proxy struct {
	listener net.Listener
	network  string
	address  string
	rule     atomic.Pointer[Rule]
	trips    atomic.Int64
	wg       sync.WaitGroup

	mu     sync.Mutex
	links  map[*link]bool
	closed bool
}

// A Message is one message of the frontend/backend protocol (PostgreSQL manual,
// chapter "Message Formats").
type Message struct {
	FromServer bool
	Type       byte   // CancelRequest: the one that has none
	SQL        string // of Parse, Bind and Query: the statement's text
	Tag        string // of CommandComplete
}

// CancelRequest is the Type of a client's wish, on a connection of its own, that
// the server cancels what another connection waits for.
const CancelRequest byte = 0

// A Rule decides on each message before it passes. It may block, which delays
// everything behind the message in its direction.
type Rule func(Message) Verdict

// A Verdict is what happens to a message and its connection.
type Verdict int

const (
	Pass       Verdict = iota
	Drop               // the message is lost and both sides are cut
	PassAndCut         // the message arrives, then both sides are cut
	CutClient          // the client is cut; the server goes on undisturbed
)

// New starts a proxy in front of a server's address. It is closed when its test
// ends.
func New(t testing.TB, network, address string) *Proxy {
	t.Helper()
	p, err := Listen(network, address)
	if err != nil {
		t.Fatalf("pgproxy: %v", err)
	}
	t.Cleanup(p.Close)
	return p
}

// Listen is New for what is not a test: its caller closes the proxy.
func Listen(network, address string) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener, network: network, address: address, links: make(map[*link]bool)}
	p.wg.Go(p.accept)
	return p, nil
}

// Port is where clients connect, on 127.0.0.1.
func (p *Proxy) Port() uint16 {
	return uint16(p.listener.Addr().(*net.TCPAddr).Port)
}

// RoundTrips is the number of times that a client has asked the server to
// answer (Sync and Query messages) since the proxy began.
func (p *Proxy) RoundTrips() int64 { return p.trips.Load() }

// SetRule replaces the rule for all connections; nil passes everything.
func (p *Proxy) SetRule(rule Rule) {
	if rule == nil {
		p.rule.Store(nil)
		return
	}
	p.rule.Store(&rule)
}

// CutAll breaks every connection there is.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut()
	}
}

// Close cuts all connections. It waits for the rule, if that blocks.
func (p *Proxy) Close() {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.CutAll()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial(p.network, p.address)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{proxy: p, client: client, server: server, statements: make(map[string]string)}
		if !p.add(l) {
			l.cut()
			return
		}
		p.wg.Go(l.serve)
	}
}

// add reports whether there is still somebody to cut l: Close can have begun since its
// client was accepted, and would wait for it.
func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.links[l] = true
	}
	return !p.closed
}

func (p *Proxy) decide(m Message) Verdict {
	if rule := p.rule.Load(); rule != nil {
		return (*rule)(m)
	}
	return Pass
}

// A link is one client's connection through the proxy.
type link struct {
	proxy          *Proxy
	client, server net.Conn
	statements     map[string]string // SQL by name; touched by the client's direction only
	clientCut      atomic.Bool       // by CutClient: the server does not hear of it
}

func (l *link) cut() {
	l.client.Close()
	l.server.Close()
}

func (l *link) serve() {
	defer func() {
		l.cut()
		l.proxy.mu.Lock()
		delete(l.proxy.links, l)
		l.proxy.mu.Unlock()
	}()
	if err := l.startup(); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.pump(l.server, l.client, true)
		l.client.Close()
	}()
	l.pump(l.client, l.server, false)
	if !l.clientCut.Load() {
		l.server.Close()
	}
	<-done
}

// startup passes the messages that have no type byte. Encryption is declined.
func (l *link) startup() error {
	const sslRequest, gssRequest, cancelRequest = 80877103, 80877104, 80877102
	for {
		head := make([]byte, 8)
		if _, err := io.ReadFull(l.client, head); err != nil {
			return err
		}
		code := binary.BigEndian.Uint32(head[4:])
		if code == sslRequest || code == gssRequest {
			if _, err := l.client.Write([]byte{'N'}); err != nil {
				return err
			}
			continue
		}
		if code == cancelRequest && l.proxy.decide(Message{Type: CancelRequest}) != Pass {
			return errors.New("pgproxy: cancel request dropped")
		}
		length := binary.BigEndian.Uint32(head)
		if length < 8 || length > maxStartup {
			return errLength
		}
		rest := make([]byte, length-8)
		if _, err := io.ReadFull(l.client, rest); err != nil {
			return err
		}
		_, err := l.server.Write(append(head, rest...))
		return err
	}
}

// pump copies messages until the connection ends.
func (l *link) pump(from, to net.Conn, fromServer bool) {
	for {
		raw, err := readMessage(from)
		if err != nil {
			return
		}
		m := l.parse(raw, fromServer)
		if !fromServer && (m.Type == 'S' || m.Type == 'Q') {
			l.proxy.trips.Add(1)
		}
		switch l.proxy.decide(m) {
		case Drop:
			l.cut()
			return
		case CutClient:
			l.clientCut.Store(true)
			l.client.Close() // first: the server can answer at once
			if fromServer {
				io.Copy(io.Discard, from)
			} else {
				to.Write(raw)
			}
			return
		case PassAndCut:
			if !fromServer {
				l.client.Close()
			}
			to.Write(raw)
			l.cut()
			return
		}
		if _, err := to.Write(raw); err != nil {
			if fromServer { // let the server finish what it is doing
				io.Copy(io.Discard, from)
			}
			return
		}
	}
}

// maxStartup is how long PostgreSQL lets a first message be.
const maxStartup = 10_000

var errLength = errors.New("pgproxy: bad message length")

func readMessage(r io.Reader) ([]byte, error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < 4 {
		return nil, errLength
	}
	raw := append(head, make([]byte, length-4)...)
	_, err := io.ReadFull(r, raw[5:])
	return raw, err
}

func (l *link) parse(raw []byte, fromServer bool) Message {
	m := Message{FromServer: fromServer, Type: raw[0]}
	body := raw[5:]
	switch {
	case fromServer && m.Type == 'C':
		m.Tag = text(&body)
	case fromServer:
	case m.Type == 'Q':
		m.SQL = text(&body)
	case m.Type == 'P':
		name := text(&body)
		m.SQL = text(&body)
		l.statements[name] = m.SQL
	case m.Type == 'B':
		text(&body) // the portal
		m.SQL = l.statements[text(&body)]
	}
	return m
}

// text takes a NUL-terminated string off the front of body.
func text(body *[]byte) string {
	s, rest, _ := bytes.Cut(*body, []byte{0})
	*body = rest
	return string(s)
}
