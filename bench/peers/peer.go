// Package peers has the ways to make a business transaction idempotent that the
// benchmark compares: this package, what a user would write or pick instead, and
// the bare transaction. A peer is one file, which registers itself.
//
// What an adapter has to do:
//
//   - Open connects with Env: a pool with Env.Pool, or with Env.DSN and Env.MaxConns
//     in the way of its library. It may use at most Env.MaxConns connections to
//     PostgreSQL, over all its pools.
//   - Client.Do does what an application does for one request: if the key is new,
//     the business transaction, in which [Call.Write] is the one statement, and
//     the record of its answer; if not, the recorded answer. It is called by many
//     goroutines.
//   - It calls [Call.Written] once whenever it has executed Call.Write: after the
//     COMMIT of the business transaction if the record is made in another step,
//     else right after Call.Write. There a run that measures does nothing; a
//     process that is to be killed stops there and never returns.
//   - A duplicate of a call in flight either waits and returns the answer, or fails
//     with an error that wraps [ErrInProgress]: what the library does by itself,
//     or its documentation says. The harness asks again as an HTTP client would.
//
// Every adapter is to be fair: written as the documentation of its library has it,
// with its best settings, and without tricks on either side.
package peers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrInProgress says that another call for the key is at work, and that the
// library does not wait for it. Nothing was executed.
var ErrInProgress = errors.New("a call with this key is in progress")

// A Peer is one way to make a business transaction idempotent.
type Peer struct {
	// Name is short: it heads the rows of every table.
	Name string

	// About is one sentence: what it is, of which version, how it is used here.
	About string

	// Redis asks for Env.Redis. The harness starts one redis-server.
	Redis bool

	// Races: parallel duplicates can each execute, in one process too. The tables of
	// storms show how often.
	Races bool

	// Whole: the business write, its record and COMMIT are sent at once, so that the
	// client has no moment between them. There is nothing to kill it in, or to let the
	// others wait for: such a peer is in no fault and no storm, and calls Call.Written
	// when the call has returned.
	Whole bool

	// Steps: the operation is one of two transactions and a request to a provider between
	// them (steps.go), and belongs to a benchmark of its own.
	Steps bool

	// Prepare makes the tables, once in each new database, which has the business
	// table already. Nil: there are none.
	Prepare func(ctx context.Context, env Env) error

	// Open is called for each section of a run, and again in every new process,
	// also after a crash: what the library does to recover at its start happens
	// here. It is not measured.
	Open func(ctx context.Context, env Env) (Client, error)
}

// Env is what an adapter connects to.
type Env struct {
	// DSN is a database of the peer's own. Between it and the client can be a link
	// that delays, counts, or loses a response.
	DSN string

	// MaxConns is the most that may be connected to PostgreSQL at a time.
	MaxConns int32

	// Redis is the address of a redis-server, empty for peers that did not ask: a
	// path ("/...") of a unix socket, or host:port, through the same kind of link
	// as DSN.
	Redis string

	// Provider is the URL of the provider that peers with Steps ask.
	Provider string
}

// A Client is a peer at work in one process.
type Client interface {
	// Do returns the answer of the call's key. When err is nil, the answer is the
	// one that Call.Write returned in the execution that took effect.
	Do(ctx context.Context, call *Call) (answer string, err error)

	// Close gives back everything: connections, goroutines.
	Close()
}

// A Baseline is the bare transaction: it does not know a key again, so the
// harness tells it when a key is one that others would replay.
type Baseline interface {
	Client

	// Seed stores the answer of a key that is to be replayed.
	Seed(ctx context.Context, call *Call, answer string) error

	// Replay reads that answer by its primary key.
	Replay(ctx context.Context, call *Call) (answer string, err error)
}

// A Stranger can replay a key as a process does that has never met it, where that is
// another way than with one that the process has met before.
type Stranger interface {
	Client

	// Unknown is Do in a process that does not know the key.
	Unknown(ctx context.Context, call *Call) (answer string, err error)
}

// Pool is a pool of MaxConns connections on DSN, with pgx's defaults for the rest.
func (e Env) Pool(ctx context.Context) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(e.DSN)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = e.MaxConns
	return pgxpool.NewWithConfig(ctx, cfg)
}

var registered []Peer

func register(p Peer) { registered = append(registered, p) }

// first are those that head the tables; the others follow by name.
var first = []string{Bare, BareSteps, Ours, QueryRow, Procedure, IdemSQL, FiveTrips, Pipelined}

// All returns the peers with and without steps, in the order of the tables.
func All(steps bool) []Peer {
	return slices.DeleteFunc(sorted(), func(p Peer) bool { return p.Steps != steps })
}

func sorted() []Peer {
	rank := func(p Peer) int {
		if i := slices.Index(first, p.Name); i >= 0 {
			return i
		}
		return len(first)
	}
	return slices.SortedStableFunc(slices.Values(registered), func(a, b Peer) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// Named returns the peer of that name.
func Named(name string) (Peer, error) {
	var names []string
	for _, p := range sorted() {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Peer{}, fmt.Errorf("there is no peer %q: there are %q", name, names)
}
