package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// stubborn is a value whose encoding fails while it is told to.
type stubborn struct {
	N    int
	fail *atomic.Bool
}

func (s stubborn) MarshalJSON() ([]byte, error) {
	if s.fail.CompareAndSwap(true, false) {
		return nil, errors.New("not now")
	}
	return json.Marshal(s.N)
}

func (s *stubborn) UnmarshalJSON(data []byte) error { return json.Unmarshal(data, &s.N) }

// Each seam of a call breaks once, in turn. The call that meets it ends with the
// result or with an error, and calling again always leads to one effect.
func TestFaultAtEverySeamAndTheRetryHasOneEffect(t *testing.T) {
	t.Parallel()
	type seam struct {
		cut     func(pgproxy.Message) bool // the connection breaks there
		acquire bool                       // the pool cannot connect
		fn      bool                       // the function fails
		encode  bool                       // the value cannot be encoded
		expired bool                       // there is an expired record
		fails   bool                       // the first call returns an error
	}
	for name, s := range map[string]seam{
		"acquire":          {acquire: true, fails: true},
		"begin":            {cut: sent("begin")},
		"claim":            {cut: sent(claimText)},
		"claim, answered":  {cut: answered("INSERT 0 1", 1)},
		"look-up":          {cut: sent(claimReadText), expired: true},
		"lock":             {cut: sent("for update skip locked"), expired: true},
		"function":         {fn: true, fails: true},
		"its statement":    {cut: sent("insert into charges")},
		"encode":           {encode: true, fails: true},
		"record":           {cut: sent("with recorded")},
		"commit":           {cut: bound("commit")},
		"commit, answered": {cut: answered("COMMIT", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			var acquire, fn, encode atomic.Bool
			store, proxy := b.through(idempotency.Config{}, func(cfg *pgxpool.Config) {
				cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
					if acquire.CompareAndSwap(true, false) {
						return errors.New("not now")
					}
					return nil
				}
			})
			if s.expired {
				b.exec("insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after) values ($1, $2, '0', now(), now(), now())", b.key.ID, b.key.Scope)
			}
			acquire.Store(s.acquire)
			fn.Store(s.fn)
			encode.Store(s.encode)
			var cut atomic.Bool
			proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
				if s.cut != nil && s.cut(m) && cut.CompareAndSwap(false, true) {
					return pgproxy.Drop
				}
				return pgproxy.Pass
			})
			call := func() error {
				got, _, err := idempotency.Do(t.Context(), store, b.key, func(ctx context.Context, tx pgx.Tx) (stubborn, error) {
					_, err := charge(b.key.ID, 1)(ctx, tx)
					if fn.CompareAndSwap(true, false) {
						err = errors.New("not now")
					}
					return stubborn{1, &encode}, err
				})
				if err == nil && got.N != 1 {
					t.Errorf("got %d", got.N)
				}
				return err
			}
			if err := call(); (err != nil) != s.fails {
				t.Errorf("first call: %v", err)
			}
			if s.cut != nil && !cut.Load() {
				t.Error("the call did not pass the seam")
			}
			if err := call(); err != nil {
				t.Errorf("second call: %v", err)
			}
			if n := query[int](b, "select count(*) from charges"); n != 1 {
				t.Errorf("%d charges", n)
			}
		})
	}
}

// The seam after the answer: the ROLLBACK of a replay is lost.
func TestLostRollbackOfAReplayCostsOnlyItsConnection(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	store, proxy := b.through(idempotency.Config{})
	b.store = store
	var cuts atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == 'Q' && m.SQL == "rollback" && cuts.Add(1) <= 3 {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	for range 10 {
		b.unknown()
		b.replays(1)
	}
	if cuts.Load() < 3 {
		t.Errorf("%d rollbacks were seen", cuts.Load())
	}
	b.effects(1)
}
