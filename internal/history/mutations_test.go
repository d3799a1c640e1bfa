package history

import (
	"testing"
	"time"
)

// A mutation breaks the package under test in one way.
type mutation struct {
	name  string
	edits []edit
}

var mutations = []mutation{
	{"take-over without the row lock", []edit{
		{"postgres.go", "expires_at <= clock_timestamp()\nfor update skip locked`", "expires_at <= clock_timestamp()`"},
		noGuard,
	}},
	{"take-over without the row lock, record without ctid", []edit{
		{"postgres.go", "expires_at <= clock_timestamp()\nfor update skip locked`", "expires_at <= clock_timestamp()`"},
		noGuard,
		{"postgres.go", "where id = $1 and scope = $2 and ctid = $3\n	returning 1", "where id = $1 and scope = $2 and $3::tid is not null\n	returning 1"},
	}},
	{"take-over without looking at the expiry again", []edit{
		{"postgres.go", "where id = $1 and scope = $2 and expires_at <= clock_timestamp()\nfor update skip locked`", "where id = $1 and scope = $2\nfor update skip locked`"},
	}},
	{"purge by key, without looking at the expiry again", []edit{
		{"postgres.go", "where ctid = any(array(\n	select ctid from idempotency_keys\n	where purge_after <= now()", "where (id, scope) in (\n	select id, scope from idempotency_keys\n	where purge_after <= now()"},
		{"postgres.go", "	limit $1\n	for update skip locked))\nand expires_at <= now()`", "	limit $1)`"},
	}},
	{"a look-up instead of a claim while in doubt", []edit{
		{"call.go", "		x, f, err := c.store.begin(ask, c.key)\n		// Near", "		if _, err := c.store.Get(ask, c.key); err == ErrNotFound {\n			return nil, nil, failed.err\n		}\n		x, f, err := c.store.begin(ask, c.key)\n		// Near"},
	}},
	{"a look-up instead of a claim while in doubt, then run again", []edit{
		{"call.go", "		x, f, err := c.store.begin(ask, c.key)\n		// Near", "		if _, err := c.store.Get(ask, c.key); err == ErrNotFound {\n			return c.claim(ctx)\n		}\n		x, f, err := c.store.begin(ask, c.key)\n		// Near"},
	}},
	{"business writes in a transaction of their own", []edit{
		{"tx.go", "	stored, err := runGuarded(ctx, x.tx, fn)\n", `	var stored []byte
	err := pgx.BeginFunc(ctx, x.store.pool, func(tx pgx.Tx) (err error) {
		stored, err = runGuarded(ctx, tx, fn)
		return err
	})
`},
	}},
	{"claim that ignores the conflict", []edit{
		{"postgres.go", "on conflict (id, scope) do nothing\nreturning ctid`", "on conflict (id, scope) do update set scope = excluded.scope\nreturning ctid`"},
	}},
	{"answers shared with those who came after the seal", []edit{
		{"gate.go", "if w.arrival <= l.flight.sealed {", "if w.arrival > 0 {"},
	}},
	{"a lost COMMIT taken for an abort", []edit{
		{"tx.go", "inDoubt:   !x.inTransaction() && !provesAbort(err),", "inDoubt:   false,"},
	}},
	{"an abort concluded after the retention", []edit{
		{"call.go", "conclusive := time.Since(failed.sent) < c.store.cfg.Retention/10*9", "conclusive := true"},
	}},
	{"savepoint kept after an error", []edit{
		{"tx.go", "		if !recorded {\n			sp.rollback(ctx)\n		}", "		_ = recorded"},
	}},
}

// noGuard takes the advisory lock out of the claim.
var noGuard = edit{"postgres.go", "where pg_try_advisory_xact_lock($3::bigint # 'idempotency_keys'::regclass::oid::bigint)\non conflict", "where $3::bigint is not null\non conflict"}

const catchBound = 90 * time.Second

func TestMutationsAreCaught(t *testing.T) {
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			s := newStage(t, buildWorker(t, mutate(t, m.edits)))
			built := time.Now()
			var all tally
			for time.Since(built) < catchBound {
				h := s.play()
				all.add(h)
				if violations := h.Check(2 * time.Second); len(violations) > 0 {
					t.Logf("built in %v, caught after %v and %d calls: %d violations, such as\n%s", built.Sub(began), time.Since(built), all.calls, len(violations), h.Excerpt(violations[0]))
					return
				}
			}
			t.Errorf("not caught by the histories of %v: %v", catchBound, &all)
		})
	}
}
