package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
	"github.com/pgidem/idempotency/internal/visible"
)

var purge = &command{
	name:    "purge",
	summary: "delete expired records, once or in a loop",
	text: `It deletes the oldest first, in small transactions with pauses between them, 10,000
records a second at most, so that calls beside it do not notice. It may be
interrupted: what was deleted stays deleted. The loop goes on after a lost connection,
may run on many machines (one of them works at a time), and ends with exit code 0 when
it is interrupted. With -json each purge is an object, one of the loop that found
nothing, failed, or stood by for another process, too.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, 0)
		db.Use = keytable.Writing
		once := fs.Bool("once", false, "delete what has expired by now, and end")
		var every age
		fs.Var(&every, "every", "go on, and look again after this `time`, such as 5m")
		asJSON := jsonFlag(fs)
		return func(ctx context.Context, std stdio, _ []string) error {
			if *once == (every > 0) {
				return usageError{"give -once, or -every TIME", true}
			}
			p := &purger{database: db, std: std, asJSON: *asJSON}
			if *once {
				return p.once(ctx)
			}
			return p.loop(ctx, time.Duration(every))
		}
	},
}

type purger struct {
	*database
	std      stdio
	asJSON   bool
	deleting atomic.Int64 // by batches, of which a Store tells only the sum at the end
}

func (p *purger) once(ctx context.Context) error {
	p.tracer = p
	return p.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		var event idempotency.Event
		store, err := p.store(pool, func(_ context.Context, e idempotency.Event) { event = e })
		if err != nil {
			return err
		}
		clear := p.progress()
		deleted, err := store.Purge(p.Purging(ctx))
		clear()
		if p.asJSON {
			if err := p.object(ctx, event); err != nil {
				return err
			}
		}
		if err != nil && deleted > 0 {
			return fmt.Errorf("%s deleted, then: %w", inspect.Plural(deleted, "expired record"), err)
		}
		if err != nil || p.asJSON {
			return err
		}
		_, err = fmt.Fprintln(p.std.out, inspect.Plural(deleted, "expired record"), "deleted")
		return err
	})
}

// A purged is what one purge did, for programs.
type purged struct {
	Deleted int64           `json:"deleted"`
	Seconds float64         `json:"seconds"`
	Outcome string          `json:"outcome"` // done, standing_by, failed
	Error   string          `json:"error,omitempty"`
	Now     inspect.Instant `json:"now"` // by the clock of this machine
}

func (p *purger) object(ctx context.Context, e idempotency.Event) error {
	line := purged{e.Deleted, e.Duration.Seconds(), e.Outcome, p.said(ctx, e.Err), inspect.Instant{Time: time.Now().UTC()}}
	return jsonLine(p.std.out, line)
}

// said is the text of an error.
func (p *purger) said(ctx context.Context, err error) string {
	if err == nil {
		return ""
	}
	return withoutPassword(p.explain(ctx, err).Error())
}

// readableSQL reads nothing, but fails where the role may not read the table.
const readableSQL = `select from idempotency_keys limit 0`

// loop fails at once where the first connection fails; later the Store's loop goes
// on, and only says so.
func (p *purger) loop(ctx context.Context, every time.Duration) error {
	stopped := ctx
	err := p.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		err := p.Reading(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, p.On(readableSQL))
			return err
		})
		if err != nil {
			return remedy.Of(err, p.Schema)
		}
		ctx, end := context.WithCancelCause(ctx)
		defer end(nil)
		store, err := p.store(pool, func(_ context.Context, e idempotency.Event) {
			if errors.As(e.Err, new(inspect.Untrusted)) {
				end(e.Err)
			}
			p.report(ctx, e)
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(p.std.err, "idempotency: purging every %v\n", every)
		if err := store.PurgeEvery(p.Purging(ctx), every); stopped.Err() != nil {
			return err
		}
		return errors.New("the loop has ended, because to try again would not help")
	})
	if stopped.Err() != nil {
		fmt.Fprintf(p.std.err, "idempotency: interrupted after %s\n", inspect.Plural(p.deleting.Load(), "deleted record"))
		return nil
	}
	return err
}

// report writes one line for each round that did something, or an object for each.
func (p *purger) report(ctx context.Context, e idempotency.Event) {
	p.deleting.Add(e.Deleted)
	now := moment(time.Now())
	if p.asJSON {
		if e.Deleted == 0 && errors.Is(e.Err, context.Canceled) {
			return
		}
		if err := p.object(ctx, e); err != nil {
			fmt.Fprintf(p.std.err, "%s idempotency: %v\n", now, err)
		}
	} else if e.Deleted > 0 {
		fmt.Fprintf(p.std.out, "%s %s deleted in %s\n", now, inspect.Plural(e.Deleted, "expired record"), inspect.Span(e.Duration))
	}
	if e.Err != nil && !errors.Is(e.Err, context.Canceled) {
		fmt.Fprintf(p.std.err, "%s idempotency: %s\n", now, visible.Text(p.said(ctx, e.Err)))
	}
}

func (p *purger) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (p *purger) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if data.CommandTag.Delete() {
		p.deleting.Add(data.CommandTag.RowsAffected())
	}
}

// progress writes to a terminal until clear is called.
func (p *purger) progress() (clear func()) {
	if !isTerminal(p.std.err) {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(p.std.err, "\r%s deleted ", inspect.Plural(p.deleting.Load(), "expired record"))
			case <-stop:
				fmt.Fprint(p.std.err, "\r", strings.Repeat(" ", 40), "\r")
				return
			}
		}
	}()
	return func() { close(stop); <-stopped }
}
