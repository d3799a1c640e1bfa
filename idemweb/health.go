package idemweb

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/visible"
)

// A checkup is the table's sizes, and what the doctor has found.
type checkup struct {
	inspect.Statistic
	Oldest   bool // else it took too long to find the oldest expired record
	Findings []doctor.Finding
	Reader   bool   // the role cannot make calls: what a reader needs was looked at
	Refused  string // why the table is not read
	Failed   bool   // the doctor could not ask all that it wanted to
}

func health(r *request) (answer, error) {
	var c checkup
	err := r.look(func(ctx context.Context, tx pgx.Tx, t *inspect.Table) error {
		err := t.Sizes(ctx, tx, &c.Statistic, samplePages)
		if err != nil {
			return err
		}
		if c.Reader, err = t.OnlyReads(ctx, tx); err != nil {
			return err
		}
		c.Oldest, err = inTime(ctx, tx, func(tx pgx.Tx) error { return t.OldestWithin(ctx, tx, &c.Statistic) })
		return err
	})
	a := answer{template: "health", title: "Health"}
	if refused, ok := errors.AsType[inspect.Untrusted](err); ok {
		c.Refused = visible.Text(string(refused)) // the doctor says more
	} else if err != nil {
		return a, err
	}
	check := doctor.Check
	if c.Reader {
		check = doctor.CheckReader
	}
	failed := r.within(func(ctx context.Context) (err error) {
		c.Findings, err = check(ctx, r.pool, r.store.Config())
		return err
	})
	c.Failed = failed != nil
	a.data = c
	return a, nil
}

// Verdict is how many findings of each kind there are.
func (c checkup) Verdict() string {
	counts := make(map[doctor.Severity]int64)
	for _, f := range c.Findings {
		counts[f.Severity]++
	}
	return fmt.Sprintf("%s, %s, %s.", inspect.Plural(counts[doctor.Error], "error"), inspect.Plural(counts[doctor.Warning], "warning"), inspect.Plural(counts[doctor.Note], "note"))
}

// Bytes is the size of all.
func (c checkup) Bytes() int64 { return c.TableBytes + c.IndexBytes + c.ToastBytes }
