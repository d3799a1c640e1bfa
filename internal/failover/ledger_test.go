package failover_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A ledger is what a server knows: the executions of each key, and the value
// recorded for it.
type ledger struct {
	executions map[string][]string
	records    map[string]string
}

func readLedger(t testing.TB, pool *pgxpool.Pool) ledger {
	t.Helper()
	l := ledger{executions: make(map[string][]string), records: make(map[string]string)}
	rows, _ := pool.Query(t.Context(), "select key, id::text from executions")
	var key, id string
	_, err := pgx.ForEachRow(rows, []any{&key, &id}, func() error {
		l.executions[key] = append(l.executions[key], id)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rows, _ = pool.Query(t.Context(), "select id, result from idempotency_keys")
	var result []byte
	_, err = pgx.ForEachRow(rows, []any{&key, &result}, func() error {
		var value string
		err := json.Unmarshal(result, &value)
		l.records[key] = value
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// violations lists what may never be: a key with two effects, an effect without
// its record or a record without its effect, an answer that is not the recorded
// one.
func (l ledger) violations(answers []answer) (found []string) {
	report := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	for key, ids := range l.executions {
		if len(ids) != 1 {
			report("%q has %d effects", key, len(ids))
		}
		if !slices.Contains(ids, l.records[key]) {
			report("%q has the effect %v and the record %q", key, ids, l.records[key])
		}
	}
	for key, value := range l.records {
		if len(l.executions[key]) == 0 {
			report("%q has the record %q and no effect", key, value)
		}
	}
	for _, a := range answers {
		switch value, ok := l.records[a.Key]; {
		case a.GaveUp != "":
			report("%q was never answered: %s", a.Key, a.GaveUp)
		case !ok:
			report("%q was answered with %q at %v, and has no record", a.Key, a.Value, a.At)
		case a.Value != value:
			report("%q was answered with %q at %v, and has the record %q", a.Key, a.Value, a.At, value)
		}
	}
	return found
}
