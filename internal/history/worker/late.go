package main

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// lateShots is how many of the batches of QueryRow arrive late.
	lateShots = 0.1

	// latest is how late: the call has claimed its key by then, and may have ended.
	latest = 300 * time.Millisecond
)

// A lateConn breaks when a batch of QueryRow is sent, and the batch arrives later: a network
// can do that. A proxy that sees messages cannot, since it would have to lose the client
// before it knows what the client sends.
type lateConn struct {
	net.Conn
	broken atomic.Bool
}

func dialLate(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &lateConn{Conn: conn}, nil
}

func (c *lateConn) Write(b []byte) (int, error) {
	if c.broken.Load() {
		return 0, syscall.EPIPE
	}
	if !isShot(b) || !chance(lateShots) {
		return c.Conn.Write(b)
	}
	c.broken.Store(true)
	go c.deliver(bytes.Clone(b))
	return len(b), nil
}

// isShot: it binds a statement that the package has prepared under a name of its own, and
// asks for an answer.
func isShot(b []byte) bool {
	sync := []byte{'S', 0, 0, 0, 4}
	return b[0] == 'B' && bytes.Contains(b, []byte("\x00idempotency_")) && bytes.HasSuffix(b, sync)
}

func (c *lateConn) deliver(b []byte) {
	defer c.Conn.Close()
	time.Sleep(rand.N(latest))
	if _, err := c.Conn.Write(b); err != nil {
		return
	}
	c.Conn.SetReadDeadline(time.Now().Add(callBound)) // PostgreSQL looks whether somebody listens
	io.Copy(io.Discard, c.Conn)
}

func (c *lateConn) Read(b []byte) (int, error) {
	if c.broken.Load() {
		return 0, syscall.ECONNRESET
	}
	return c.Conn.Read(b)
}

// Close leaves a broken connection to deliver.
func (c *lateConn) Close() error {
	if c.broken.Load() {
		return nil
	}
	return c.Conn.Close()
}
