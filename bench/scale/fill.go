package scale

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// fillBatch is the number of rows after which the progress is kept: what an
// interruption costs at most.
const fillBatch = 25_000

// progressEvery is how often the progress is shown.
const progressEvery = 5 * time.Second

// expiredBefore is where the numbers of expired rows begin, far below the others.
const expiredBefore = -1_000_000_000

// A filling is a number of rows that a table is to be grown to.
type filling struct {
	shape   shape
	rows    int64
	kind    string
	from    int64  // the number of the first row
	expires string // in so long
	kept    bool   // how far it is, in the database
}

// fill grows the live rows of a table to a number.
func (b *bench) fill(ctx context.Context, s shape, rows int64) error {
	return b.grow(ctx, filling{s, rows, "live", 1, "30 days", true})
}

// fillExpired makes those rows that can be purged which are missing: a purge that was
// interrupted has deleted some.
func (b *bench) fillExpired(ctx context.Context, s shape, rows int64) error {
	return b.grow(ctx, filling{s, rows, "expired", expiredBefore, "-1 hour", false})
}

func (b *bench) grow(ctx context.Context, f filling) (err error) {
	conns, err := b.fillers(ctx, f.shape)
	defer func() {
		for _, conn := range conns {
			err = errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err != nil {
		return err
	}
	var done int64
	if f.kept {
		if err := conns[0].QueryRow(ctx, "select live from filled").Scan(&done); err != nil {
			return err
		}
	}
	if done >= f.rows {
		return nil
	}
	b.logf("%s: filling %d to %d %s rows", f.shape.name, done, f.rows, f.kind)
	begun, start, shown := done, time.Now(), time.Now()
	for done < f.rows {
		to := min(done+fillBatch, f.rows)
		if err := f.batch(ctx, conns, done, to); err != nil {
			return fmt.Errorf("fill: %w", err)
		}
		done = to
		if time.Since(shown) > progressEvery {
			shown = time.Now()
			speed := float64(done-begun) / time.Since(start).Seconds()
			left := time.Duration(float64(f.rows-done) / speed * float64(time.Second))
			b.logf("%s: %d of %d rows (%d%%), %.0f rows/s, %v to go", f.shape.name, done, f.rows, 100*done/f.rows, speed, left.Round(time.Second))
		}
	}
	return nil
}

// fillers are as many sessions as there are cores here.
func (b *bench) fillers(ctx context.Context, s shape) (conns []*pgx.Conn, err error) {
	for range runtime.NumCPU() {
		conn, err := pgx.Connect(ctx, b.server.DSN(s.database(), ""))
		if err != nil {
			return conns, err
		}
		conns = append(conns, conn)
		// Not durable at once: if the server crashes, the fill goes on from what is left.
		for _, sql := range []string{"set synchronous_commit = off", fillSQL} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return conns, err
			}
		}
	}
	return conns, nil
}

// batch makes the rows after done, up to and with to. The sessions make every so
// many-th of them, as parallel calls come, in the order of time.
func (f filling) batch(ctx context.Context, conns []*pgx.Conn, done, to int64) error {
	errs := make([]error, len(conns))
	var wg sync.WaitGroup
	for i, conn := range conns {
		wg.Go(func() {
			_, errs[i] = conn.Exec(ctx, "call pg_temp.fill($1, $2, $3, $4, $5, $6::interval)",
				f.from+done+int64(i), f.from+to-1, len(conns), f.shape.random, f.shape.scopes, f.expires)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil || !f.kept {
		return err
	}
	_, err := conns[0].Exec(ctx, "update filled set live = $1", to)
	return err
}
