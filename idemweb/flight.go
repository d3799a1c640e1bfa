package idemweb

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/inspect"
)

// shownHolders is how many of the transactions that hold a key are listed, the oldest first.
const shownHolders = 200

// A flight is what is in flight.
type flight struct {
	Holders []inspect.KeyHolder // at most shownHolders
	Total   int
	Keys    int64
	Grant   string // what would show the rest to this role
	Oldest  *inspect.Instant
	Ages    []ageClass
	Most    int64
	Now     inspect.Instant
}

// An ageClass is a bar of the chart: how many transactions are that old.
type ageClass struct {
	Name         string
	Transactions int64
	under        time.Duration // 0: no end
}

func ageClasses() []ageClass {
	return []ageClass{
		{"under 100 ms", 0, 100 * time.Millisecond}, {"100 ms to 1 s", 0, time.Second}, {"1 s to 10 s", 0, 10 * time.Second},
		{"10 s to 1 min", 0, time.Minute}, {"1 min to 10 min", 0, 10 * time.Minute}, {"10 min and more", 0, 0},
	}
}

func newFlight(holders []inspect.KeyHolder, now inspect.Instant) flight {
	f := flight{Holders: holders[:min(len(holders), shownHolders)], Total: len(holders), Ages: ageClasses(), Now: now}
	for _, h := range holders {
		f.Keys += h.Keys
		if f.Grant == "" {
			f.Grant = h.Grant
		}
		if h.Seconds == nil {
			continue
		}
		if f.Oldest == nil {
			f.Oldest = h.Start
		}
		age := time.Duration(float64(*h.Seconds) * float64(time.Second))
		for i := range f.Ages {
			if c := &f.Ages[i]; c.under == 0 || age < c.under {
				c.Transactions++
				f.Most = max(f.Most, c.Transactions)
				break
			}
		}
	}
	return f
}

// Count is of the transactions.
func (f flight) Count() int64 { return int64(f.Total) }

// More is how many are not listed.
func (f flight) More() int64 { return int64(f.Total - len(f.Holders)) }

// Doing is what a transaction that holds a key does, in words.
func (f flight) Doing(h inspect.KeyHolder) string {
	switch {
	case h.Replicating():
		return "committing: it waits for a synchronous standby; do not end it"
	case !h.Writing:
		return "has just begun, or replays a recorded result"
	case h.Waiting != "" && h.State == "active":
		return "at work; PostgreSQL says that it waits for " + h.Waiting
	case h.State == "idle in transaction":
		return "no statement runs: the function is busy elsewhere, or frozen"
	}
	return "at work"
}

// refreshEvery is the default of pages that refresh themselves, in seconds.
const refreshEvery = 5

// refresh is what the query asks for: 0 stops it.
func (r *request) refresh(otherwise int) int {
	text := r.form.Get("refresh")
	if text == "" {
		return otherwise
	}
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds <= 0 {
		return 0
	}
	return min(max(seconds, 2), 3600)
}

func inFlight(r *request) (answer, error) {
	var f flight
	err := r.look(func(ctx context.Context, tx pgx.Tx, t *inspect.Table) error {
		holders, err := t.KeyHolders(ctx, tx)
		if err != nil {
			return err
		}
		now, err := t.Now(ctx, tx)
		f = newFlight(holders, now)
		return err
	})
	return answer{template: "flight", title: "In flight now", refresh: r.refresh(refreshEvery), data: f}, err
}
