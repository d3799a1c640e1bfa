package idemweb

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/inspect"
)

const (
	// samplePages is about how many pages of 8 kB of a larger table are read for an estimate,
	// which is then wrong by a tenth at times.
	samplePages = 300

	// largest is how many scopes are shown.
	largest = 10
)

// A numbers is what is counted of the table.
type numbers struct {
	inspect.Statistic
	Flight  flight
	Bounded bool // there are more unfinished procedures than were counted
	Sampled bool // else the sample took too long
	Oldest  bool // likewise the oldest expired record
	Hours   hours
}

func overview(r *request) (answer, error) {
	n, err := r.numbers()
	return answer{template: "overview", title: "Overview", refresh: r.refresh(0), data: n}, err
}

func (r *request) numbers() (n numbers, err error) {
	err = r.look(func(ctx context.Context, tx pgx.Tx, t *inspect.Table) error {
		holders, err := t.KeyHolders(ctx, tx)
		if err != nil {
			return err
		}
		s := &n.Statistic
		if err := t.Sizes(ctx, tx, s, samplePages); err != nil {
			return err
		}
		n.Flight = newFlight(holders, s.Now)
		o, err := t.Operations(ctx, tx)
		if err != nil {
			return err
		}
		if s.Unfinished, n.Bounded, err = t.BacklogWithin(ctx, tx, o); err != nil {
			return err
		}
		readable, err := t.MayRead(ctx, tx, false)
		if err != nil {
			return err
		}
		n.Sampled, err = inTime(ctx, tx, func(tx pgx.Tx) error { return t.Sample(ctx, tx, s, o, largest, readable) })
		if err != nil {
			return err
		}
		n.Oldest, err = inTime(ctx, tx, func(tx pgx.Tx) error { return t.OldestWithin(ctx, tx, s) })
		return err
	})
	n.Hours = newHours(n.Statistic)
	return n, err
}

// Search is an empty form.
func (n numbers) Search() search { return search{} }

// Bytes is the size of all.
func (n numbers) Bytes() int64 { return n.TableBytes + n.IndexBytes + n.ToastBytes }

// Sized reports whether the role may read the size of the results.
func (n numbers) Sized() bool { return len(n.Scopes) > 0 && n.Scopes[0].Bytes > 0 }

// Most is what the widest bar of the scopes stands for.
func (n numbers) Most() (most int64) {
	for _, s := range n.Scopes {
		most = max(most, n.Share(s))
	}
	return most
}

// Share is what a scope's bar stands for.
func (n numbers) Share(s inspect.ScopeCount) int64 {
	if n.Sized() {
		return s.Bytes
	}
	return s.Keys
}

// InCalls is how many unfinished procedures wait for an outcome, as far as the role may see.
func (n numbers) InCalls() int64 {
	if n.Unfinished == nil || n.Unfinished.InCalls == nil {
		return 0
	}
	return *n.Unfinished.InCalls
}
