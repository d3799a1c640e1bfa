// Package scale measures a table that has grown.
package scale

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
	"github.com/pgidem/idempotency/bench/run"
	"github.com/pgidem/idempotency/bench/server"
	"github.com/pgidem/idempotency/migrations"
)

// Settings are the flags of "bench scale".
type Settings struct {
	DSN    string
	Rows   int64 // of the full tables
	Slice  time.Duration
	Rounds int
	Pool   int
	Window time.Duration // of a purge, and of the calls without one
	Pairs  int           // of such windows
	Fresh  bool          // forget what an interrupted run has left
	Force  bool          // also when the disk seems too small
	Kept   bool          // the server stays when this command has ended
	Log    io.Writer
}

// control is the database that remembers what is done. Each shape has one for
// its full table and one for an empty one, which go when it is done.
const control = "bench_scale"

func (s shape) database() string {
	return fmt.Sprintf("%s_%d", control, slices.Index(allShapes, s))
}

func (s shape) empty() string { return s.database() + "_empty" }

// A bench is a run on its way.
type bench struct {
	Settings
	server *server.Server
	state  *pgxpool.Pool // on control
	run    results.Scale
	began  time.Time
}

// Run measures. When ctx ends, what is in the database stays, for the next Run.
func Run(ctx context.Context, set Settings) (results.Scale, error) {
	b := &bench{Settings: set, began: time.Now()}
	b.run.Started = b.began.UTC().Truncate(time.Second)
	defer b.close()
	err := b.all(ctx)
	if err != nil && ctx.Err() != nil {
		err = b.interrupted(err)
	}
	b.run.Took = time.Since(b.began)
	return b.run, err
}

func (b *bench) interrupted(err error) error {
	if b.Kept {
		return fmt.Errorf("interrupted; the same command goes on from here, with -fresh it begins anew: %w", err)
	}
	return fmt.Errorf("interrupted; this server goes away with all that was filled: to be able to go on, set DATABASE_URL to one that stays: %w", err)
}

func (b *bench) all(ctx context.Context) (err error) {
	if b.server, err = server.Open(ctx, b.DSN); err != nil {
		return err
	}
	if b.run.Conditions, err = run.Conditions(ctx, b.server); err != nil {
		return err
	}
	c := &b.run.Conditions
	c.Pool, c.Slice, c.Rounds, c.Window = int32(b.Pool), b.Slice, b.Rounds, b.Window
	if b.Fresh {
		if err := b.forget(ctx); err != nil {
			return err
		}
	}
	if err := b.openState(ctx); err != nil {
		return err
	}
	if err := b.checkNeeds(ctx); err != nil {
		return err
	}
	for _, s := range allShapes {
		if err := b.shape(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return b.forget(ctx)
}

func (b *bench) close() {
	if b.state != nil {
		b.state.Close()
	}
	if b.server != nil {
		b.server.Close()
	}
}

// forget drops all databases of this benchmark.
func (b *bench) forget(ctx context.Context) error {
	if b.state != nil {
		b.state.Close()
	}
	var errs []error
	for _, s := range allShapes {
		errs = append(errs, b.server.Drop(ctx, s.database()), b.server.Drop(ctx, s.empty()))
	}
	return errors.Join(append(errs, b.server.Drop(ctx, control))...)
}

// A progress is what is known of one shape.
type progress struct {
	Points []results.Point
	Purges []results.Purge
	Done   bool
}

// has reports whether a section of a size is measured.
func (p *progress) has(rows int64, section string) bool {
	return slices.ContainsFunc(p.Points, func(q results.Point) bool { return q.Rows == rows && q.Section == section })
}

const stateTable = `create table if not exists progress (shape text primary key, rows bigint not null, progress jsonb not null)`

func (b *bench) openState(ctx context.Context) error {
	if err := b.server.CreateIfMissing(ctx, control); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, b.server.DSN(control, ""))
	if err != nil {
		return err
	}
	b.state = pool
	if _, err := pool.Exec(ctx, stateTable); err != nil {
		return err
	}
	var rows int64
	err = pool.QueryRow(ctx, "select rows from progress where rows <> $1 limit 1", b.Rows).Scan(&rows)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err == nil:
		err = fmt.Errorf("a run with -rows %d was interrupted on this server: finish it, or begin anew with -fresh", rows)
	}
	return err
}

func (b *bench) load(ctx context.Context, s shape) (p progress, err error) {
	var text []byte
	err = b.state.QueryRow(ctx, "select progress from progress where shape = $1", s.name).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	return p, err
}

func (b *bench) save(ctx context.Context, s shape, p progress) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	_, err = b.state.Exec(ctx, `
		insert into progress (shape, rows, progress) values ($1, $2, $3)
		on conflict (shape) do update set progress = excluded.progress`, s.name, b.Rows, text)
	return err
}

// shape measures one shape, as far as that is not done.
func (b *bench) shape(ctx context.Context, s shape) error {
	p, err := b.load(ctx, s)
	if err != nil {
		return err
	}
	if !p.Done {
		if p, err = b.measureShape(ctx, s, p); err != nil {
			return err
		}
	}
	b.run.Points = append(b.run.Points, p.Points...)
	b.run.Purges = append(b.run.Purges, p.Purges...)
	return nil
}

func (b *bench) measureShape(ctx context.Context, s shape, p progress) (progress, error) {
	if err := b.save(ctx, s, p); err != nil { // from here on -rows is settled
		return p, err
	}
	for _, database := range []string{s.database(), s.empty()} {
		if err := b.prepare(ctx, database); err != nil {
			return p, err
		}
	}
	for _, rows := range stages(b.Rows) {
		if err := b.fill(ctx, s, rows); err != nil {
			return p, err
		}
		if err := b.points(ctx, s, rows, &p); err != nil {
			return p, err
		}
	}
	if s == allShapes[0] {
		purge, err := b.purge(ctx, s)
		if err != nil {
			return p, err
		}
		p.Purges = append(p.Purges, purge)
	}
	p.Done = true
	return p, errors.Join(b.save(ctx, s, p), b.server.Drop(ctx, s.database()), b.server.Drop(ctx, s.empty()))
}

// stages are the sizes at which a table is measured while it grows.
func stages(rows int64) []int64 {
	return slices.Compact([]int64{max(rows/10, 1), max(rows*3/10, 1), rows})
}

// prepare makes the tables of a database, as far as they are missing.
func (b *bench) prepare(ctx context.Context, database string) error {
	if err := b.server.CreateIfMissing(ctx, database); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, b.server.DSN(database, ""))
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool, ""); err != nil {
		return err
	}
	_, err = pool.Exec(ctx, `
		create table if not exists filled (live bigint not null);
		insert into filled select 0 where not exists (select from filled);
		alter table idempotency_keys set (autovacuum_enabled = off); -- no vacuum in the middle of a measurement
		drop table if exists charges;`+peers.BusinessTable)
	return err
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.Log, "%6s  "+format+"\n", append([]any{time.Since(b.began).Round(time.Second)}, args...)...)
}
