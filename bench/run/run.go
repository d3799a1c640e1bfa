// Package run measures the peers side by side.
package run

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pgidem/idempotency/bench/link"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
	"github.com/pgidem/idempotency/bench/server"
)

// Settings are the flags of "bench run".
type Settings struct {
	DSN        string
	Peers      []peers.Peer
	Sections   []string
	Slice      time.Duration // how long a peer is measured in one round
	Rounds     int
	Delay      time.Duration // of the delay link, each way
	Pool       int           // connections of each peer
	Callers    []int         // concurrency of first calls behind the delay link, for the chart
	Duplicates int           // in a storm
	Many       int           // in a storm of this package
	Window     time.Duration // of a storm, and of the calm before it
	Work       time.Duration // that the storm's key takes
	Calls      int           // that are counted
	Keys       int           // of each fault
	Log        io.Writer     // progress
}

// Sections are all there are, in their order.
var Sections = []string{"counts", "faults", "first", "replay", "mix", "storm"}

// A bench is a run on its way.
type bench struct {
	Settings
	server   *server.Server
	redis    *server.Redis
	provider *server.Provider
	delays   []*link.Process
	routes   map[string]route // by link
	entrants []*entrant
	run      results.Run
	began    time.Time
}

// A route is how a link leads to the servers.
type route struct {
	address string // for PostgreSQL; empty is the server's own
	redis   string
}

// An entrant is a peer with its database.
type entrant struct {
	peers.Peer
	database string
	seeds    []seed
}

// A seed is a key with a recorded answer.
type seed struct {
	call   *peers.Call
	answer string
}

// Run measures, and returns what it has measured so far also with an error.
func Run(ctx context.Context, set Settings) (results.Run, error) {
	b := &bench{Settings: set, began: time.Now()}
	b.run.Started = b.began.UTC().Truncate(time.Second)
	defer b.close()
	if err := b.open(ctx); err != nil {
		return b.run, err
	}
	err := b.sections(ctx)
	b.run.Took = time.Since(b.began)
	return b.run, err
}

func (b *bench) sections(ctx context.Context) error {
	do := map[string]func(context.Context) error{
		"counts": b.counts,
		"faults": b.faults,
		"first":  b.first,
		"replay": b.replay,
		"mix":    b.mix,
		"storm":  b.storms,
	}
	for _, name := range Sections {
		if !slices.Contains(b.Sections, name) {
			continue
		}
		if err := do[name](ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (b *bench) open(ctx context.Context) (err error) {
	if b.server, err = server.Open(ctx, b.DSN); err != nil {
		return err
	}
	if err := b.checkConnections(ctx); err != nil {
		return err
	}
	if slices.ContainsFunc(b.Peers, func(p peers.Peer) bool { return p.Redis }) {
		if b.redis, err = server.StartRedis(); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(b.Peers, func(p peers.Peer) bool { return p.Steps }) {
		b.provider = server.StartProvider()
	}
	if err := b.openLinks(); err != nil {
		return err
	}
	if err := b.conditions(ctx); err != nil {
		return err
	}
	for i, p := range b.Peers {
		b.run.Peers = append(b.run.Peers, results.Peer{Name: p.Name, About: p.About})
		e := &entrant{Peer: p, database: fmt.Sprintf("bench_run_%d", i)}
		b.entrants = append(b.entrants, e)
		if err := b.renew(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// checkConnections: in a section, all pools are open at the same time.
func (b *bench) checkConnections(ctx context.Context) error {
	var most int
	err := b.server.Admin.QueryRow(ctx, "select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int").Scan(&most)
	if need := len(b.Peers)*b.Pool + 20; err == nil && most < need {
		err = fmt.Errorf("the server allows %d connections, and %d peers with pools of %d need %d: raise max_connections, or choose fewer -peers or a smaller -pool", most, len(b.Peers), b.Pool, need)
	}
	return err
}

// divisible are the peers whose client does something between the business write and the
// record.
func (b *bench) divisible() []*entrant {
	return slices.DeleteFunc(slices.Clone(b.entrants), func(e *entrant) bool { return e.Whole })
}

func (b *bench) openLinks() error {
	b.routes = map[string]route{results.Socket: {}, results.Delay: {}}
	socket, delay := b.routes[results.Socket], b.routes[results.Delay]
	p, err := link.Start(b.server.Network, b.server.Address, b.Delay)
	if err != nil {
		return err
	}
	b.delays = append(b.delays, p)
	delay.address = p.Address
	if b.redis != nil {
		p, err := link.Start("unix", b.redis.Socket, b.Delay)
		if err != nil {
			return err
		}
		b.delays = append(b.delays, p)
		socket.redis, delay.redis = b.redis.Socket, p.Address
	}
	b.routes[results.Socket], b.routes[results.Delay] = socket, delay
	return nil
}

func (b *bench) close() {
	for _, p := range b.delays {
		p.Close()
	}
	if b.redis != nil {
		b.redis.Close()
	}
	if b.provider != nil {
		b.provider.Close()
	}
	if b.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, e := range b.entrants {
		if err := b.server.Drop(ctx, e.database); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
	b.server.Close()
}

// renew gives a peer a new database.
func (b *bench) renew(ctx context.Context, e *entrant) error {
	e.seeds = nil
	if err := b.server.Recreate(ctx, e.database); err != nil {
		return err
	}
	if err := b.server.Exec(ctx, e.database, peers.BusinessTable); err != nil {
		return err
	}
	if e.Prepare == nil {
		return nil
	}
	if err := e.Prepare(ctx, b.env(e, results.Socket)); err != nil {
		return fmt.Errorf("%s: prepare: %w", e.Name, err)
	}
	return nil
}

func (b *bench) env(e *entrant, linkName string) peers.Env {
	return b.envAt(e, b.routes[linkName])
}

func (b *bench) envAt(e *entrant, r route) peers.Env {
	env := peers.Env{DSN: b.server.DSN(e.database, r.address), MaxConns: int32(b.Pool)}
	if e.Redis {
		env.Redis = r.redis
	}
	if e.Steps {
		env.Provider = b.provider.URL()
	}
	return env
}

func (b *bench) client(ctx context.Context, e *entrant, env peers.Env) (peers.Client, error) {
	client, err := e.Open(ctx, env)
	if err != nil {
		return nil, fmt.Errorf("%s: open: %w", e.Name, err)
	}
	return client, nil
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.Log, "%6s  "+strings.TrimSuffix(format, "\n")+"\n",
		append([]any{time.Since(b.began).Round(time.Second)}, args...)...)
}
