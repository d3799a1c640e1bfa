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
		"	and pg_try_advisory_xact_lock(` + lockNumberSQL + `) end` + claimTail",
		"	and $3::bigint is not null end` + claimTail"}
	noAdvisoryLockInTx = edit{"postgres.go",
		"where pg_try_advisory_xact_lock(` + lockNumberSQL + `)` + claimTail",
		"where $3::bigint is not null` + claimTail"}
	noAdvisoryLockToTakeOver = edit{"postgres.go",
		"		and pg_try_advisory_xact_lock(` + lockNumberSQL + `)\n	for update",
		"		and $3::bigint is not null\n	for update"}
	takeOverWithoutRowLock = edit{"postgres.go",
		"\n	for update skip locked))\n	and expires_at <= clock_timestamp()\nreturning",
		"))\n	and expires_at <= clock_timestamp()\nreturning"}
	takeOverWithoutSecondLook = edit{"postgres.go",
		"	for update skip locked))\n	and expires_at <= clock_timestamp()\nreturning",
		"	for update skip locked))\nreturning"}
	noAdvisoryLockInGuard = edit{"postgres.go",
		"	when not pg_try_advisory_xact_lock(` + lockNumberSQL + `) then '` + sayTaken + `'\n	when exists",
		"	when $3::bigint is null then ''\n	when exists"}
	noAdvisoryLockInStrictGuard = edit{"postgres.go",
		"	where pg_try_advisory_xact_lock(` + lockNumberSQL + `)\n	on conflict",
		"	where $3::bigint is not null\n	on conflict"}
	noGuard = edit{"postgres.go",
		"	when current_setting('transaction_isolation'::text) = 'serializable'::text then '` + saySerializable + `'\n" +
			"	when not ` + sameTableSQL + ` then '` + sayElsewhere + `'\n" +
			"	when not pg_try_advisory_xact_lock(` + lockNumberSQL + `) then '` + sayTaken + `'\n" +
			"	when exists (select from idempotency_keys where id = $1::text and scope = $2::text) then '` + sayTaken + `'\n",
		"	when $1::text is null or $2::text is null or $3::bigint is null then ''\n"}
	recordWithoutConflict = []edit{
		{"query.go", `strings.Replace(effectSQL, ":conflict", "", 1)`, `strings.Replace(effectSQL, ":conflict", "\n	on conflict do nothing", 1)`},
		{"postgres.go",
			"	when (select r.same and r.result = v.result from idempotency_record r, idempotency_value v) then '1'\n	else '` + sayRecordChanged + `'\nend)::integer, (select result from idempotency_record)`",
			"	when (select fits = 1 from idempotency_value) then '1'\n	else '` + sayRecordChanged + `'\nend)::integer, (select result from idempotency_value)`"},
	}
	purgeWithoutRowLock = edit{"postgres.go",
		"	limit $1::bigint\n	for update skip locked\n)",
		"	limit $1::bigint\n)"}
	purgeWithoutSecondLook = edit{"postgres.go",
		"in (select part, place from old)\n	and expires_at <= now()\nreturning case",
		"in (select part, place from old)\nreturning case"}
)

// mutations have to be caught. Each is as small as it can be: what remains of
// the package then no longer keeps the promise.
var mutations = []mutation{
	// The claim.
	{"a claim that takes a recorded key", []edit{{"postgres.go",
		"on conflict (id, scope) do nothing\nreturning ` + claimColumns",
		"on conflict (id, scope) do update set scope = excluded.scope\nreturning ` + claimColumns"}}},

	// The take-over. Each of its row lock and its second look at the expiry is enough,
	// and on one server so is the advisory lock.
	{"a take-over without locks that does not look at the expiry again", []edit{
		noAdvisoryLock, noAdvisoryLockInTx,
		{"postgres.go",
			"where id = $1::text and scope = $2::text and ctid = any(array(\n	select ctid from idempotency_keys\n	where id = $1::text and scope = $2::text and expires_at <= clock_timestamp()\n		and pg_try_advisory_xact_lock(` + lockNumberSQL + `)\n	for update skip locked))\n	and expires_at <= clock_timestamp()\nreturning",
			"where id = $1::text and scope = $2::text and $3::bigint is not null\nreturning"},
	}},
	{"a take-over that does not look at the expiry again", []edit{
		{"postgres.go",
			"	where id = $1::text and scope = $2::text and expires_at <= clock_timestamp()\n",
			"	where id = $1::text and scope = $2::text\n"},
		takeOverWithoutSecondLook,
	}},

	// The purge. Each of its row lock, which looks again, and its second look is
	// enough; where the ctid holds, that is too.
	{"a purge by key that does not look at the expiry again", []edit{
		{"postgres.go",
			"select tableoid as part, ctid as place from",
			"select id as part, scope as place from"},
		{"postgres.go",
			"where ctid = any(array(select place from old)) and (tableoid, ctid) in (select part, place from old)\n	and expires_at <= now()\nreturning case",
			"where (id, scope) in (select part, place from old)\nreturning case"},
		purgeWithoutRowLock,
	}},

	// The commit in doubt.
	{"a look-up while in doubt, and what is not found was aborted", lookUpWhileInDoubt("return nil, nil, failed.err")},
	// The claim of the second run waits for the first one's commit, so this is only
	// seen when the first record has expired by then.
	{"a look-up while in doubt, and what is not found runs again", lookUpWhileInDoubt("return c.claim(ctx)")},
	{"a lost commit taken for an abort", []edit{{"tx.go",
		"failed.inDoubt = !x.inTransaction() && !provesAbort(err)",
		"failed.inDoubt = false"}}},
	{"an abort concluded from an expired record", []edit{{"call.go",
		"conclusive := time.Since(failed.sent) < c.store.cfg.Retention/10*9",
		"conclusive := true"}}},

	// The transaction.
	{"business writes that commit before the record", []edit{{"call.go",
		"	result, err := c.run(ctx, x.tx)\n",
		`	var result []byte
	err := pgx.BeginFunc(ctx, x.store.pool, func(tx pgx.Tx) (err error) {
		result, err = c.run(ctx, tx)
		return err
	})
`}}},
	{"a savepoint kept after an error", []edit{{"savepoint.go",
		"		if !kept {\n			sp.rollback(ctx)\n		}",
		"		_ = kept"}}},

	// The answers.
	{"an answer shared with those who came too late for it", []edit{{"gate.go",
		"if w.arrival <= l.flight.sealed {",
		"if w.arrival > 0 {"}}},
	{"an answer shared before its commit", []edit{{"call.go",
		"	c.lead.seal()\n	if failed := x.commit(out); failed != nil {",
		"	c.lead.seal()\n	c.lead.share(out)\n	if failed := x.commit(out); failed != nil {"}}},
	{"an expired record replayed", []edit{{"postgres.go",
		"	case found.outdated:\n		f.state = expired\n",
		""}}},
	{"an expired record of a known key replayed", []edit{{"postgres.go",
		"where id = $1::text and scope = $2::text and expires_at > clock_timestamp() and (select not",
		"where id = $1::text and scope = $2::text and expires_at is not null and (select not"}}},
	{"a memory that answers, and does not ask the table", []edit{
		{"memory.go", "	\"sync/atomic\"\n", "	\"sync\"\n	\"sync/atomic\"\n"},
		{"memory.go", "func (c *invocation) recall(", "var answers sync.Map\n\nfunc (c *invocation) recall("},
		{"memory.go", "	c.lead.seal()\n", "	if a, ok := answers.Load(c.key); ok {\n		return a.(*answer)\n	}\n	c.lead.seal()\n"},
		{"memory.go", "	c.lead.share(f.answer)\n", "	answers.Store(c.key, f.answer)\n	c.lead.share(f.answer)\n"},
	}},
	{"an answer for another request", []edit{{"call.go",
		"case found.fingerprint != c.key.Fingerprint:",
		"case found.result == nil:"}}},
}

// statementMutations are of the call in one round trip, in histories with more of them.
// Each of its guard, which looks at the row, and the conflict of its record on the unique
// index is enough for a key that was recorded before. For one that is recorded after the
// guard was bound and before it is executed there is only the index: the guard gets the
// lock, and looks at what was there when it was bound.
var statementMutations = []mutation{
	{"a statement whose record may be missing", recordWithoutConflict},
	{"a statement whose record may be missing, without a guard", append(recordWithoutConflict, noGuard)},
	{"a statement whose record replaces another", []edit{
		{"query.go", `strings.Replace(effectSQL, ":conflict", "", 1)`, `strings.Replace(effectSQL, ":conflict", strictConflictSQL, 1)`}}},
	{"a guard for SERIALIZABLE that lets a recorded key pass", []edit{{"postgres.go",
		"	when (select not same from claim) then '` + sayElsewhere + `'\n	else '` + sayTaken + `'",
		"	when (select not same from claim) then '` + sayElsewhere + `'\n	else '1'"}}},
	{"a lost statement taken for an abort", []edit{{"shot.go",
		"		v.c.late = true\n		return shot{failed: &failure{err: err, transient: true, inDoubt: true, sent: sent}}, false\n",
		"		return shot{}, false\n"}}},
	{"a statement that may still arrive when its call has failed", []edit{{"shot.go",
		"		v.c.late = true\n", ""}}},
}

// rare mutations need many histories, a minute of them or more: only their edits are
// tried, but for the long form.
var rare = map[string]bool{
	"a take-over without locks that does not look at the expiry again": true,
	"an answer shared with those who came too late for it":             true,
	"a statement whose record replaces another":                        true,
	"a guard for SERIALIZABLE that lets a recorded key pass":           true,
	"a statement that may still arrive when its call has failed":       true,
	"an answer for another request":                                    true,
	"a lost statement taken for an abort":                              true,
}

// lookUpWhileInDoubt asks for the record of a lost commit with a bare SELECT.
func lookUpWhileInDoubt(notFound string) []edit {
	return []edit{{"call.go",
		"		x, f, err := c.begin(ask)\n		// Near",
		"		if _, err := c.store.Get(ask, c.key); err == ErrNotFound {\n			" + notFound + "\n		}\n" +
			"		x, f, err := c.begin(ask)\n		// Near"}}
}

const (
	// mutantTrips makes a history that shows most mutations. A process needs some more
	// to describe and prepare its statements.
	mutantTrips = 1000

	// mutantCheckBound is short: porcupine can take for ever to find that a history
	// is wrong, and another history follows.
	mutantCheckBound = 2 * time.Second

	// catchBound is for a mutation that is rare, and for a slow machine.
	catchBound = 3 * time.Minute
)

func TestMutationsAreCaught(t *testing.T) {
	// Not in parallel: on a slow machine, the processes of two histories are so busy with
	// connecting again that hardly a call succeeds.
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			worker := buildWorker(t, mutate(t, m.edits))
			if rare[m.name] && !long() {
				return
			}
			newStage(t, worker).catches()
		})
	}
	for _, m := range statementMutations {
		t.Run(m.name, func(t *testing.T) {
			worker := buildWorker(t, mutate(t, m.edits))
			if rare[m.name] && !long() {
				return
			}
			s := newStage(t, worker)
			s.statements = 2 * statements
			s.catches()
		})
	}
}

// catches makes histories until one of them breaks the promise.
func (s *stage) catches() {
	s.Helper()
	var all tally
	for start := time.Now(); time.Since(start) < catchBound; {
		h := s.play(mutantTrips * s.statements / statements)
		all.add(h)
		violations := slices.DeleteFunc(h.Check(mutantCheckBound), func(v Violation) bool { return v.Rule == undecided })
		if len(violations) > 0 {
			s.Logf("caught after %v and %d calls, by %q; one violation:\n%s", time.Since(start).Round(time.Millisecond),
				all.calls, sentences(violations), h.Excerpt(violations[0]))
			return
		}
	}
	s.Errorf("not caught in %v: %v", catchBound, &all)
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
	{"no advisory lock: the unique index and the row lock hold", []edit{
		noAdvisoryLock, noAdvisoryLockInTx, noAdvisoryLockToTakeOver, noAdvisoryLockInGuard, noAdvisoryLockInStrictGuard,
	}},
	{"a take-over without the row lock: its second look is enough", []edit{noAdvisoryLockToTakeOver, takeOverWithoutRowLock}},
	{"a take-over without a second look: its row lock looks again", []edit{noAdvisoryLockToTakeOver, takeOverWithoutSecondLook}},
	{"a purge without a second look: its row lock looks again", []edit{purgeWithoutSecondLook}},
	{"a purge without its row lock: the second look is enough", []edit{purgeWithoutRowLock}},
	{"a statement without its guard: its record meets the unique index, and what it did is rolled back", []edit{noGuard}},
	{"a guard that does not look at the row: the record meets it on the unique index", []edit{{"postgres.go",
		"	when exists (select from idempotency_keys where id = $1::text and scope = $2::text) then '` + sayTaken + `'\n",
		"	when $1::text is null or $2::text is null then ''\n"}}},
	{"no gate: the database is the judge", []edit{{"gate.go",
		"	if f == nil {\n		if g.flights == nil {",
		"	if f = nil; f == nil {\n		if g.flights == nil {"}}},
}

func TestRedundantLayersAreNotMissed(t *testing.T) {
	for _, m := range redundancies {
		t.Run(m.name, func(t *testing.T) {
			worker := buildWorker(t, mutate(t, m.edits))
			if rare[m.name] && !long() {
				return // a short history would show little; the edits still apply
			}
			least, trips := 1, 2*mutantTrips
			if long() {
				least, trips = 2, roundTrips
			}
			newStage(t, worker).holds(historyTime(t)/time.Duration(2*len(redundancies)), least, trips)
		})
	}
}
