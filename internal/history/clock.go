package history

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/history/journal"
)

// A Clock translates the database's time to that of the journals: what has to be
// added to a journal's time lies between Least and Most.
type Clock struct {
	Least, Most int64
	read        bool
}

// clockReadings is enough to find one that nothing came between.
const clockReadings = 20

// Read compares the clocks. It is called before and after a history, so that the
// bounds hold for a database's clock that is slewed meanwhile.
func (c *Clock) Read(ctx context.Context, pool *pgxpool.Pool) error {
	var narrowest Clock
	for range clockReadings {
		var at time.Time
		before := journal.Now()
		if err := pool.QueryRow(ctx, `select clock_timestamp()`).Scan(&at); err != nil {
			return err
		}
		after := journal.Now()
		reading := Clock{Least: at.UnixNano() - after, Most: at.UnixNano() - before, read: true}
		if !narrowest.read || reading.Most-reading.Least < narrowest.Most-narrowest.Least {
			narrowest = reading
		}
	}
	if !c.read {
		*c = narrowest
		return nil
	}
	c.Least, c.Most = min(c.Least, narrowest.Least), max(c.Most, narrowest.Most)
	return nil
}

// precision of the database's times, which are cut to whole microseconds.
const precision = int64(time.Microsecond)

func (c Clock) earliest(t time.Time) int64 { return t.UnixNano() - c.Most - precision }
func (c Clock) latest(t time.Time) int64   { return t.UnixNano() - c.Least + precision }
