package idemtest

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/running"
)

// Guard makes the pools of cfg fail the test when a connection is acquired with
// the context of a running function of Do or DoTx: a statement through the pool,
// or another Do, where its transaction should have been used. The report names
// the line; the statement is refused and not sent, so that a pool that is used up
// does not make the test hang.
//
// Call it before the pool is made; a pool that exists already, or another copy of
// its configuration, is not guarded. So a test in which no connection was acquired
// through cfg fails, too. The tracer that cfg has is kept, and so are
// its other hooks. A statement that is sent with a context of another origin,
// such as [context.Background], is not found. Guard does nothing once the test
// has ended.
func Guard(t testing.TB, cfg *pgxpool.Config) {
	t.Helper()
	g := &guard{t: t, reported: make(map[string]bool)}
	t.Cleanup(g.end)
	if cfg.ConnConfig.Tracer == nil {
		cfg.ConnConfig.Tracer = g
		return
	}
	cfg.ConnConfig.Tracer = multitracer.New(g, cfg.ConnConfig.Tracer)
}

// A guard is called before the pool looks for a connection. PrepareConn would be
// too late: it waits for a connection first, which a pool whose connections are
// all held by such functions never has.
type guard struct {
	t testing.TB

	mu       sync.Mutex
	asked    bool // for a connection, whoever wanted it
	ended    bool
	reported map[string]bool // by line
}

func (g *guard) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	if !g.asked && !g.t.Failed() && !g.t.Skipped() {
		g.t.Error("idemtest: Guard has seen no connection being acquired: call it before the pool is made, with the Config that the pool is made of")
	}
}

func (g *guard) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	g.mu.Lock()
	g.asked = true
	g.mu.Unlock()
	key, found := running.Innermost(ctx)
	if !found {
		return ctx
	}
	at := findCaller()
	if !g.report(at, key) {
		return ctx
	}
	return refusal{Context: ctx, err: fmt.Errorf("idemtest: refused by Guard: a connection of the pool inside the function of key %q, at %s", key.ID, at.line)}
}

func (*guard) TraceAcquireEnd(context.Context, *pgxpool.Pool, pgxpool.TraceAcquireEndData) {}

// A QueryTracer is what pgx asks for, though nothing is done with queries.
func (*guard) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (*guard) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// report fails the test, once per line, and reports whether the test still runs.
func (g *guard) report(at caller, key running.Key) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return false
	}
	if !g.reported[at.line] {
		g.reported[at.line] = true
		g.t.Error("idemtest: " + at.report(key))
	}
	return true
}

// A refusal is a context that has ended with an error that says why.
type refusal struct {
	context.Context
	err error
}

func (r refusal) Err() error { return r.err }

func (refusal) Done() <-chan struct{} { return alreadyDone }

var alreadyDone = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// A caller is who wanted a connection.
type caller struct {
	line   string // file:line of the user's code
	nested bool   // by another Do
}

const module = "github.com/pgidem/idempotency"

// findCaller looks for the first function that is neither of pgx, of this module,
// nor of a library that stands in between.
func findCaller() caller {
	pcs := make([]uintptr, 100)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	var at caller
	for {
		f, more := frames.Next()
		switch {
		case f.Function == "":
		case strings.HasPrefix(f.Function, module+".Do["):
			at.nested = true
		case !isLibrary(f):
			at.line = fmt.Sprintf("%s:%d", shorten(f.File), f.Line)
			return at
		}
		if !more {
			at.line = "an unknown line"
			return at
		}
	}
}

func isLibrary(f runtime.Frame) bool {
	for _, prefix := range []string{
		module + ".", module + "/idemtest.", module + "/internal/transport.",
		module + "/idemhttp.", module + "/idemgrpc.", module + "/idemconnect.",
		"github.com/jackc/", "database/sql.", "runtime.",
	} {
		if strings.HasPrefix(f.Function, prefix) {
			return true
		}
	}
	// In the module cache, also of a program built with -trimpath; or vendored.
	return strings.Contains(f.File, "/pkg/mod/") || strings.Contains(f.File, "@v") || strings.Contains(f.File, "/vendor/")
}

// shorten keeps the folder and the name of a file, as it is known to its author.
func shorten(file string) string {
	dir, name := filepath.Split(file)
	return filepath.Join(filepath.Base(dir), name)
}

func (at caller) report(key running.Key) string {
	if at.nested {
		return problem{
			what:     at.line + ": a Do inside the function of a Do or DoTx",
			expected: "one transaction for the function of key " + describe(key),
			found:    "a Do, which commits by itself whatever becomes of the outer transaction",
			likely:   "join the outer transaction: idempotency.DoTx(ctx, store, tx, key, ...) with the tx of the outer function",
		}.String()
	}
	return problem{
		what:     at.line + ": a connection of the pool inside the function of a Do or DoTx",
		expected: "every statement of the function of key " + describe(key) + " through its tx",
		found:    "a connection acquired from the pool with the function's context",
		likely:   "the statement was sent through the pool: use tx.Exec, tx.Query or tx.Begin, in a procedure those of a step. Through the pool it commits by itself: it stays when the transaction of Do, or of the caller of DoTx, is rolled back, and happens again when the function runs again; and it takes a second connection",
	}.String()
}

func describe(key running.Key) string {
	return fmt.Sprintf("%q in scope %q", key.ID, key.Scope)
}
