package idemweb

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/remedy"
	"github.com/pgidem/idempotency/internal/visible"
)

const (
	// turns is how many requests have a connection of the pool at a time: the calls of the
	// program come first.
	turns = 2

	// patience is how long one statement takes at most.
	patience = 2 * time.Second

	// bound is how long a request waits for all of it, a connection included.
	bound = 10 * time.Second
)

// errBusy is the error of a request that has had no turn within bound.
var errBusy = errors.New("busy")

// within calls do when a connection may be taken, with a context that ends in time.
func (r *request) within(do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(r.Context(), bound)
	defer cancel()
	select {
	case r.turns <- struct{}{}:
		defer func() { <-r.turns }()
		return do(ctx)
	case <-ctx.Done():
		return errBusy
	}
}

// look calls do in the one transaction of a page.
func (r *request) look(do func(context.Context, pgx.Tx, *inspect.Table) error) error {
	return r.within(func(ctx context.Context) error {
		return r.table.Look(ctx, r.pool, patience, func(tx pgx.Tx, t *inspect.Table) error { return do(ctx, tx, t) })
	})
}

const queryCanceled = "57014"

// inTime calls do, and reports whether its statements have ended before their time was up:
// the rest of the page does not need what they would have told.
func inTime(ctx context.Context, tx pgx.Tx, do func(pgx.Tx) error) (ended bool, err error) {
	err = pgx.BeginFunc(ctx, tx, do)
	if timedOut(err) && ctx.Err() == nil {
		return false, nil
	}
	return err == nil, err
}

func timedOut(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == queryCanceled
}

// explain is the page of an error: what is known, and what to do. It has neither an address
// nor a user of the database, since the page can be shown to others.
func explain(ctx context.Context, err error) answer {
	const title = "The database did not answer"
	unavailable := func(text string) answer {
		return failure(http.StatusServiceUnavailable, title, visible.Text(text))
	}
	if text, ok := errors.AsType[inspect.Untrusted](err); ok {
		return failure(http.StatusServiceUnavailable, "The table is not read", visible.Text(string(text)))
	}
	err = remedy.Of(err, "")
	pg, said := errors.AsType[*pgconn.PgError](err)
	e, known := errors.AsType[*remedy.Error](err)
	switch {
	case known:
		return unavailable(sentence(e.Remedy))
	case errors.Is(err, errBusy):
		return unavailable("Other requests for this page were being answered all the time. Ask again.")
	case ctx.Err() != nil:
		return unavailable("The request was given up by the one who sent it.")
	case timedOut(err):
		return unavailable("A statement took longer than " + patience.String() + ", and was ended, so that it does no harm. The server is very busy, or somebody has locked the table. Ask again.")
	case said && errors.As(err, new(*pgconn.ConnectError)):
		return unavailable("No connection can be made: " + pg.Message + " (SQLSTATE " + pg.Code + ").")
	case said:
		return unavailable("It answers: " + pg.Message + " (SQLSTATE " + pg.Code + ").")
	case errors.Is(err, context.DeadlineExceeded):
		return unavailable("No connection of the pool was free, or none could be made, within " + bound.String() + ". Look at the program’s pool and at the server.")
	case errors.As(err, new(*pgconn.ConnectError)) || errors.As(err, new(*net.OpError)):
		return unavailable("No connection can be made" + reason(err) + ". Look whether the server runs, and can be reached from here.")
	}
	return unavailable("The connection was lost, or the answer cannot be read. Ask again.")
}

func reason(err error) string {
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return ": " + e.Err.Error()
	}
	return ""
}
