package demo

import (
	"context"
	"strings"
	"sync"
)

// Cards is the card provider, and what it prints.
type cards struct {
	*process
	printed text
}

// startCards starts one that leaves the first two requests without an answer. It charges
// the cards.
func (d *demo) startCards(ctx context.Context) error {
	p := d.newProcess(ctx, "provider", "-silent", "2")
	p.cmd.Stdout = &d.cards.printed
	if err := p.start(); err != nil {
		return err
	}
	d.cards.process = p
	return nil
}

func (c *cards) url() string {
	if c.process == nil {
		return ""
	}
	return "http://" + c.address
}

func (c *cards) kill() {
	if c.process != nil && c.cmd.ProcessState == nil {
		_ = c.process.kill()
	}
}

// charges counts the lines that say so.
func (c *cards) charges() int { return strings.Count(c.printed.String(), ": charged ") }

// A text is written by one goroutine and read by another.
type text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}
