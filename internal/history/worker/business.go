package main

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/history/journal"
)

// A fate is how a run of the business function ends. It is written with the
// effect, so that the database shows an effect that should not be there.
type fate string

const (
	succeeds fate = "succeeds"
	fails    fate = "fails"    // returns an error
	panics   fate = "panics"   // does not return
	swallows fate = "swallows" // returns nil although a statement failed
	dawdles  fate = "dawdles"  // is silent for longer than MaxIdle
)

func randomFate() fate {
	switch n := rand.IntN(100); {
	case n < 8:
		return fails
	case n < 12:
		return panics
	case n < 15:
		return swallows
	case n < 16:
		return dawdles
	}
	return succeeds
}

var (
	errDeclined = errors.New("declined")
	errPanic    = errors.New("the business function panicked")
)

// business inserts one row that names this execution, and returns the name: the
// answer to a call says which execution it came from.
func (c *call) business(ctx context.Context, tx pgx.Tx) (string, error) {
	c.runs++
	execution, fate := journal.ExecutionOf(c.begin.Call, c.runs), randomFate()
	pause()
	_, err := tx.Exec(ctx, `insert into effects (execution, key, fate) values ($1, $2, $3)`,
		execution, c.begin.Key, string(fate))
	if err != nil {
		return "", err
	}
	pause()
	switch fate {
	case fails:
		return "", errDeclined
	case panics:
		panic(errPanic)
	case swallows:
		// Not ctx: when it has ended pgx sends nothing, and no statement fails.
		tx.Exec(context.WithoutCancel(ctx), `select 1 / 0`)
	case dawdles:
		time.Sleep(c.worker.job.MaxIdle * 5 / 4)
	}
	return execution, nil
}

// businessSQL is business as one statement. The database draws its fate and names the
// execution: see history.witnessSQL.
const businessSQL = `
insert into effects (execution, key, fate)
select $1::text || '#' || pg_current_xact_id()::text, $2::text, fate from draw() fate
returning conclude(execution, fate)`

func pause() {
	if chance(0.5) {
		time.Sleep(rand.N(10 * time.Millisecond))
	}
}

func executionIn(record idempotency.Record) (execution string, err error) {
	return execution, json.Unmarshal(record.Result, &execution)
}
