// Package link is a proxy between a client and a server that delays what passes,
// as a network does: bytes are late, and do not wait for each other. It counts
// round trips whatever the protocol is.
package link

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Proxy listens on a loopback port.
type Proxy struct {
	listener         net.Listener
	network, address string
	delay            time.Duration // each way
	trips            atomic.Int64
	wg               sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once the proxy is closed
}

// Listen starts a proxy in front of an address.
func Listen(network, address string, delay time.Duration) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener, network: network, address: address, delay: delay, conns: make(map[net.Conn]bool)}
	p.wg.Go(p.accept)
	return p, nil
}

// Address is where clients connect.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Trips is the number of times that a client has spoken after the server did:
// on each connection, what is sent without a look at an answer is one round trip.
func (p *Proxy) Trips() int64 { return p.trips.Load() }

// Close cuts all connections.
func (p *Proxy) Close() {
	p.listener.Close()
	p.mu.Lock()
	for c := range p.conns {
		c.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

// keep remembers a connection for Close, unless that came first.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) forget(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *Proxy) serve(client net.Conn) {
	if !p.keep(client) {
		return
	}
	defer p.forget(client)
	server, err := net.Dial(p.network, p.address)
	if err != nil || !p.keep(server) {
		return
	}
	defer p.forget(server)

	var spoken atomic.Bool // the client spoke last
	var wg sync.WaitGroup
	wg.Go(func() {
		p.pump(client, server, func() {
			if !spoken.Swap(true) {
				p.trips.Add(1)
			}
		})
		closeWrite(server)
	})
	p.pump(server, client, func() { spoken.Store(false) })
	client.Close()
	wg.Wait()
}

// closeWrite lets the server answer what it has been sent.
func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

// A chunk is on its way.
type chunk struct {
	due  time.Time
	data []byte
}

// inFlight is how many chunks are on their way in one direction before the
// reader waits.
const inFlight = 256

// pump copies one direction until it ends. Reading and writing are apart, so
// that what comes later is not delayed by what came before.
func (p *Proxy) pump(from, to net.Conn, seen func()) {
	chunks := make(chan chunk, inFlight)
	done := make(chan struct{})
	go func() {
		defer close(done)
		write(to, chunks)
	}()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			seen()
			chunks <- chunk{time.Now().Add(p.delay), append([]byte(nil), buffer[:n]...)}
		}
		if err != nil {
			break
		}
	}
	close(chunks)
	<-done
}

func write(to net.Conn, chunks <-chan chunk) {
	alarm, err := newAlarm()
	if err != nil {
		to.Close()
	} else {
		defer alarm.Close()
	}
	for c := range chunks {
		if err == nil {
			err = errors.Join(alarm.Wait(c.due), all(to.Write(c.data)))
		}
	}
}

func all(_ int, err error) error { return err }
