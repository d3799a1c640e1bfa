package scale

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// fillBatch is the number of rows of one transaction: what an interruption costs
// at most.
const fillBatch = 25_000

// progressEvery is how often the progress is shown.
const progressEvery = 5 * time.Second

// expiredBefore is where the numbers of expired rows begin, far below the others.
const expiredBefore = -1_000_000_000

// fill grows the live rows of a table to a number. How far it is stands in the
// database, in the transaction of the rows themselves.
func (b *bench) fill(ctx context.Context, s shape, rows int64) error {
	return b.fillTo(ctx, s, rows, "live", 1, "30 days")
}

// fillExpired grows the rows that can be purged.
func (b *bench) fillExpired(ctx context.Context, s shape, rows int64) error {
	return b.fillTo(ctx, s, rows, "expired", expiredBefore, "-1 hour")
}

func (b *bench) fillTo(ctx context.Context, s shape, rows int64, column string, from int64, expires string) (err error) {
	conn, err := pgx.Connect(ctx, b.server.DSN(s.database(), ""))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	// Not durable at once: if the server crashes, the fill goes on from what is left.
	for _, sql := range []string{"set synchronous_commit = off", fillSQL} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	var done int64
	if err := conn.QueryRow(ctx, "select "+column+" from filled").Scan(&done); err != nil {
		return err
	}
	if done >= rows {
		return nil
	}
	b.logf("%s: filling %d to %d %s rows", s.name, done, rows, column)
	begun, start, shown := done, time.Now(), time.Now()
	for done < rows {
		to := min(done+fillBatch, rows)
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "select pg_temp.fill($1, $2, $3, $4, $5::interval)", from+done, from+to-1, s.random, s.scopes, expires); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "update filled set "+column+" = $1", to)
			return err
		})
		if err != nil {
			return fmt.Errorf("fill: %w", err)
		}
		done = to
		if time.Since(shown) > progressEvery {
			shown = time.Now()
			speed := float64(done-begun) / time.Since(start).Seconds()
			left := time.Duration(float64(rows-done) / speed * float64(time.Second))
			b.logf("%s: %d of %d rows (%d%%), %.0f rows/s, %v to go", s.name, done, rows, 100*done/rows, speed, left.Round(time.Second))
		}
	}
	return nil
}
