package history

import (
	"slices"
	"testing"
	"time"
)

// A mutation breaks the package under test in one way.
type mutation struct {
	name  string
	edits []edit
}

// Edits that are parts of several mutations.
var (
	noAdvisoryLock = edit{"postgres.go",
		"where pg_try_advisory_xact_lock($3::bigint # 'idempotency_keys'::regclass::oid::bigint)\non conflict",
		"where $3::bigint is not null\non conflict"}
	noAdvisoryLockToTakeOver = edit{"postgres.go",
		"	and pg_try_advisory_xact_lock($3::bigint # 'idempotency_keys'::regclass::oid::bigint)\nfor update",
		"	and $3::bigint is not null\nfor update"}
	noRowLock = edit{"postgres.go",
		"\nfor update skip locked`",
		"`"}
	recordAnyVersion = edit{"postgres.go",
		"` and ctid >= $3 and ctid <= $3`",
		"` and $3::tid is not null`"}
	purgeWithoutRowLock = edit{"postgres.go",
		"	limit $1\n	for update skip locked))",
		"	limit $1))"}
	purgeWithoutSecondLook = edit{"postgres.go",
		"))\nand expires_at <= now()`",
		"))`"}
)

// mutations have to be caught. Each is as small as it can be: what remains of
// the package then no longer keeps the promise.
var mutations = []mutation{
	// The claim.
	{"a claim that takes a recorded key", []edit{{"postgres.go",
		"on conflict (id, scope) do nothing\nreturning ctid,",
		"on conflict (id, scope) do update set scope = excluded.scope\nreturning ctid,"}}},

	// The take-over. Where the advisory lock does not hold, as on a distributed
	// table, all depends on its row lock: that the record finds its row by ctid keeps
	// a second call from recording, but not a call whose commit is in doubt from
	// concluding that it was aborted. (The ctid holds only since the minor releases
	// of November 2025: before, PostgreSQL did not look at it again after it had
	// waited for the row.)
	{"a take-over without locks, recorded by key", []edit{noAdvisoryLock, noAdvisoryLockToTakeOver, noRowLock, recordAnyVersion}},
	{"a take-over without the row lock", []edit{noAdvisoryLockToTakeOver, noRowLock}},
	{"a take-over that does not look at the expiry again", []edit{{"postgres.go",
		"where id = $1 and scope = $2 and expires_at <= clock_timestamp()\n",
		"where id = $1 and scope = $2\n"}}},

	// The purge. Each of its row lock, which looks again, and its second look is
	// enough; where the ctid holds, that is too.
	{"a purge by key that does not look at the expiry again", []edit{
		{"postgres.go",
			"where ctid = any(array(\n	select ctid from idempotency_keys\n	where purge_after <= now()",
			"where (id, scope) in (\n	select id, scope from idempotency_keys\n	where purge_after <= now()"},
		{"postgres.go",
			"	limit $1\n	for update skip locked))\nand expires_at <= now()`",
			"	limit $1)`"},
	}},

	// The commit in doubt.
	{"a look-up while in doubt, and what is not found was aborted", lookUpWhileInDoubt("return nil, nil, failed.err")},
	// The claim of the second run waits for the first one's commit, so this is only
	// seen when the first record has expired by then.
	{"a look-up while in doubt, and what is not found runs again", lookUpWhileInDoubt("return c.claim(ctx)")},
	{"a lost commit taken for an abort", []edit{{"tx.go",
		"inDoubt:   !x.inTransaction() && !provesAbort(err),",
		"inDoubt:   false,"}}},
	{"an abort concluded from an expired record", []edit{{"call.go",
		"conclusive := time.Since(failed.sent) < c.store.cfg.Retention/10*9",
		"conclusive := true"}}},

	// The transaction.
	{"business writes that commit before the record", []edit{{"tx.go",
		"	stored, err := runGuarded(ctx, x.tx, fn)\n",
		`	var stored []byte
	err := pgx.BeginFunc(ctx, x.store.pool, func(tx pgx.Tx) (err error) {
		stored, err = runGuarded(ctx, tx, fn)
		return err
	})
`}}},
	{"a savepoint kept after an error", []edit{{"tx.go",
		"		if !recorded {\n			sp.rollback(ctx)\n		}",
		"		_ = recorded"}}},

	// The answers.
	{"an answer shared with those who came too late for it", []edit{{"gate.go",
		"if w.arrival <= l.flight.sealed {",
		"if w.arrival > 0 {"}}},
	{"an answer shared before its commit", []edit{{"call.go",
		"	c.lease.seal()\n	if failed := x.commit(rec); failed != nil {",
		"	c.lease.seal()\n	c.lease.share(rec)\n	if failed := x.commit(rec); failed != nil {"}}},
	{"an expired record replayed", []edit{{"postgres.go",
		"	case outdated:\n		return finding{state: expired}, nil\n",
		""}}},
	{"an answer for another request", []edit{{"call.go",
		"case rec.fingerprint != key.Fingerprint:",
		"case rec.result == nil:"}}},
}

// lookUpWhileInDoubt asks for the record of a lost commit with a bare SELECT.
func lookUpWhileInDoubt(notFound string) []edit {
	return []edit{{"call.go",
		"		x, f, err := c.store.begin(ask, c.key)\n		// Near",
		"		if _, err := c.store.Get(ask, c.key); err == ErrNotFound {\n			" + notFound + "\n		}\n" +
			"		x, f, err := c.store.begin(ask, c.key)\n		// Near"}}
}

const (
	// mutantTrips makes a history that shows most mutations.
	mutantTrips = 2500

	// mutantCheckBound is short: porcupine can take for ever to find that a history
	// is wrong, and another history follows.
	mutantCheckBound = 2 * time.Second

	// catchBound is for a mutation that is rare, and for a slow machine.
	catchBound = 3 * time.Minute
)

func TestMutationsAreCaught(t *testing.T) {
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, buildWorker(t, mutate(t, m.edits)))
			var all tally
			for start := time.Now(); time.Since(start) < catchBound; {
				h := s.play(mutantTrips)
				all.add(h)
				violations := slices.DeleteFunc(h.Check(mutantCheckBound), func(v Violation) bool { return v.Rule == undecided })
				if len(violations) > 0 {
					t.Logf("caught after %v and %d calls, by %q; one violation:\n%s", time.Since(start).Round(time.Millisecond),
						all.calls, sentences(violations), h.Excerpt(violations[0]))
					return
				}
			}
			t.Errorf("not caught in %v: %v", catchBound, &all)
		})
	}
}

// sentences are those of the promise that are broken.
func sentences(violations []Violation) (broken []string) {
	for _, v := range violations {
		broken = append(broken, v.Rule)
	}
	slices.Sort(broken)
	return slices.Compact(broken)
}

// redundancies take away what the promise does not hang on, because something
// else holds it: a mutation that does no more than this cannot be caught.
var redundancies = []mutation{
	{"no advisory lock: the unique index and the row lock hold", []edit{noAdvisoryLock, noAdvisoryLockToTakeOver}},
	{"a take-over without the row lock: the advisory lock holds, on one server", []edit{noRowLock}},
	{"a record by key: the row lock holds", []edit{recordAnyVersion}},
	{"a purge without a second look: its row lock looks again", []edit{purgeWithoutSecondLook}},
	{"a purge without its row lock: the second look is enough", []edit{purgeWithoutRowLock}},
	{"no gate: the database is the judge", []edit{{"gate.go",
		"	if f == nil {\n		if g.flights == nil {",
		"	if f = nil; f == nil {\n		if g.flights == nil {"}}},
}

func TestRedundantLayersAreNotMissed(t *testing.T) {
	for _, m := range redundancies {
		t.Run(m.name, func(t *testing.T) {
			if !long() {
				t.Parallel()
			}
			s := newStage(t, buildWorker(t, mutate(t, m.edits)))
			if !long() {
				h := s.play(mutantTrips)
				s.report(h, h.Check(checkBound))
				return
			}
			s.holds(historyTime(t) / time.Duration(2*len(redundancies)))
		})
	}
}
