package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// schedules are random: a few calls on one key at once, of each kind, on Stores
// of each isolation level, some over lines that break at any message.
type schedules struct {
	*bundle
	stores  []*idempotency.Store
	proxies []*pgproxy.Proxy
}

// chronicleSQL keeps, for each key, the order of what happened to its record: a
// result was recorded (R), its retention was cut short (X), it was removed (D).
// The rows are part of the transactions that they tell of.
const chronicleSQL = `
create table chronicle (n bigint generated always as identity, id text, what text, result text);
create function chronicle() returns trigger language plpgsql as $$ begin
	if tg_op = 'DELETE' then
		insert into chronicle (id, what) values (old.id, 'D');
	elsif new.completed_at is null then
		return null; -- a call takes an expired record over
	elsif new.completed_at is distinct from old.completed_at then
		insert into chronicle (id, what, result) values (new.id, 'R', convert_from(new.result, 'UTF8'));
	else
		insert into chronicle (id, what) values (new.id, 'X');
	end if;
	return null;
end $$;
create trigger chronicle after update or delete on idempotency_keys for each row execute function chronicle()`

func setupSchedules(t *testing.T) *schedules {
	t.Helper()
	s := &schedules{bundle: setup(t, idempotency.Config{})}
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Conn().PgConn().Exec(t.Context(), chronicleSQL).ReadAll()
	conn.Release()
	if err != nil {
		t.Fatal(err)
	}
	for _, level := range []pgx.TxIsoLevel{"", pgx.RepeatableRead, pgx.Serializable} {
		store, proxy := s.through(idempotency.Config{
			Wait: 2 * time.Second, MaxIdle: 300 * time.Millisecond, TxOptions: pgx.TxOptions{IsoLevel: level},
		}, pgtest.MaxConns(4))
		proxy.SetRule(bad)
		s.stores, s.proxies = append(s.stores, store), append(s.proxies, proxy)
	}
	s.stores = append(s.stores, s.storeOn(s.pool, idempotency.Config{Wait: -1}))
	return s
}

func chance(p float64) bool { return rand.Float64() < p }

// bad is a line that breaks anywhere, and near a COMMIT above all.
func bad(m pgproxy.Message) pgproxy.Verdict {
	p := 0.004
	if commitOnItsWay(m) || commitAnswered(m) {
		p = 0.15
	}
	switch {
	case m.Type == pgproxy.CancelRequest && chance(0.5):
		return pgproxy.Drop
	case chance(p):
		return []pgproxy.Verdict{pgproxy.Drop, pgproxy.PassAndCut}[rand.IntN(2)]
	case chance(p) && (m.FromServer || m.Type == 'S' || m.Type == 'Q'): // not in the middle of a batch
		return pgproxy.CutClient
	case chance(p):
		time.Sleep(rand.N(50 * time.Millisecond))
	}
	return pgproxy.Pass
}

var errWanted = errors.New("the function does not want to")

// business charges the key once, and returns the charge's number. What it does
// otherwise is up to chance.
func (s *schedules) business(id string, cancel func()) func(context.Context, pgx.Tx) (int, error) {
	return func(ctx context.Context, tx pgx.Tx) (int, error) {
		var n int
		err := tx.QueryRow(ctx, "insert into charges (key, amount) values ($1, 1) returning id", id).Scan(&n)
		if err != nil {
			return 0, err
		}
		time.Sleep(rand.N(10 * time.Millisecond))
		switch k := rand.IntN(20); {
		case k < 3:
			return 0, errWanted
		case k == 3:
			panic(errWanted)
		case k == 4:
			cancel() // and then it succeeds
		case k == 5:
			cancel()
			return 0, ctx.Err()
		case k == 6:
			_, err = tx.Exec(ctx, "select pg_terminate_backend(pg_backend_pid())")
		case k == 7: // a savepoint of its own, undone
			err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				if _, err := charge(id, 2)(ctx, tx); err != nil {
					return err
				}
				return errWanted
			})
			if errors.Is(err, errWanted) {
				err = nil
			}
		}
		return n, err
	}
}

// try makes one call of any kind, and returns what the caller can rely on.
func (s *schedules) try(key idempotency.Key) (got outcome) {
	bound := 30 * time.Second
	if chance(0.15) {
		bound = rand.N(40 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	defer func() {
		if p := recover(); p != nil && p != error(errWanted) {
			panic(p)
		} else if p != nil {
			got = outcome{err: errWanted}
		}
	}()
	time.Sleep(rand.N(15 * time.Millisecond))
	store, fn := s.stores[rand.IntN(len(s.stores))], s.business(key.ID, cancel)
	switch k := rand.IntN(10); {
	case k < 6:
		got.value, got.replayed, got.err = idempotency.Do(ctx, store, key, fn)
	case k < 8:
		got = s.inTx(ctx, store, key, fn)
	default: // inside the function of another key, which has the same value
		outer := idempotency.Key{Scope: "outer", ID: fmt.Sprintf("%s/%d", key.ID, rand.Int64())}
		got.value, got.replayed, got.err = idempotency.Do(ctx, store, outer, func(ctx context.Context, tx pgx.Tx) (int, error) {
			value, _, err := idempotency.DoTx(ctx, store, tx, key, fn)
			return value, err
		})
		got.replayed = true // or not: this call does not know
	}
	return got
}

// inTx is DoTx in a transaction of the caller's own, which goes the caller's ways.
func (s *schedules) inTx(ctx context.Context, store *idempotency.Store, key idempotency.Key, fn func(context.Context, pgx.Tx) (int, error)) (got outcome) {
	err := pgx.BeginTxFunc(ctx, idempotency.PoolOf(store), pgx.TxOptions{IsoLevel: store.Config().TxOptions.IsoLevel}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local idle_in_transaction_session_timeout = 300"); err != nil {
			return err
		}
		if chance(0.3) { // once in a savepoint that is undone
			err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				if _, _, err := idempotency.DoTx(ctx, store, tx, key, fn); err != nil {
					return err
				}
				return errWanted
			})
			if !errors.Is(err, errWanted) {
				return err
			}
		}
		got.value, got.replayed, got.err = idempotency.DoTx(ctx, store, tx, key, fn)
		if chance(0.2) {
			return errWanted
		}
		return nil // also after an error: nothing of it may remain
	})
	if got.err == nil && !got.replayed {
		got.err = err
	}
	return got
}

// run plays one schedule, and checks what came of it.
func (s *schedules) run(n int) {
	key := idempotency.Key{Scope: "customer-1", ID: fmt.Sprintf("schedule-%d", n)}
	forgetful := chance(0.4) // somebody deletes, or the retention ends, meanwhile
	var calls sync.WaitGroup
	got := make([]outcome, 2+rand.IntN(5))
	for i := range got {
		calls.Go(func() { got[i] = s.try(key) })
	}
	if forgetful {
		for range 1 + rand.IntN(2) {
			calls.Go(func() { s.forget(key) })
		}
	}
	calls.Wait()
	// Sessions that were cut off end within MaxIdle. The key is then free, or recorded.
	last := s.last(key)
	executed := 0
	for _, o := range append(got, last) {
		switch {
		case errors.Is(o.err, idempotency.ErrKeyReused) || errors.Is(o.err, idempotency.ErrAbandoned) || errors.Is(o.err, idempotency.ErrOutcomeUnknown):
			s.Errorf("%s: %v", key.ID, o.err)
			continue
		case o.err != nil:
			continue
		case !o.replayed:
			executed++
		}
		if !forgetful && o.value != last.value {
			s.Errorf("%s: one answer is %+v, the last one %+v", key.ID, o, last)
		}
		if query[int](s.bundle, "select count(*) from charges where key = $1 and id = $2", key.ID, o.value) != 1 {
			s.Errorf("%s: the answer %+v has no charge", key.ID, o)
		}
	}
	if !forgetful && executed > 1 {
		s.Errorf("%s: %d calls have executed: %+v", key.ID, executed, got)
	}
	s.check(key, got)
}

func (s *schedules) last(key idempotency.Key) outcome {
	store := s.storeOn(s.pool, idempotency.Config{Wait: time.Minute})
	value, replayed, err := idempotency.Do(context.Background(), store, key, func(ctx context.Context, tx pgx.Tx) (n int, err error) {
		err = tx.QueryRow(ctx, "insert into charges (key, amount) values ($1, 1) returning id", key.ID).Scan(&n)
		return n, err
	})
	if err != nil {
		s.Errorf("%s: the last call: %v\n%s", key.ID, err, query[string](s.bundle, `
			select coalesce(string_agg(concat_ws(' ', pid, state, wait_event, now() - state_change, query), E'\n'), '')
			from pg_stat_activity where datname = current_database() and xact_start is not null and pid <> pg_backend_pid()`))
	}
	return outcome{value, replayed, err}
}

// forget deletes the record, or lets it expire, and purges.
func (s *schedules) forget(key idempotency.Key) {
	time.Sleep(rand.N(40 * time.Millisecond))
	ctx := context.Background()
	store := s.stores[rand.IntN(len(s.stores))]
	switch rand.IntN(3) {
	case 0:
		_ = store.Delete(ctx, key)
	case 1:
		s.exec("update idempotency_keys set expires_at = now(), purge_after = now() where id = $1 and expires_at > now()", key.ID)
	case 2:
		s.exec("update idempotency_keys set expires_at = now(), purge_after = now() where id = $1 and expires_at > now()", key.ID)
		_, _ = store.Purge(ctx)
	}
}

// check compares the charges of the key with its chronicle: each has been recorded,
// each record has its charge, and none came while another one was live.
func (s *schedules) check(key idempotency.Key, got []outcome) {
	var story string
	for { // where it is SERIALIZABLE, PostgreSQL may refuse even to look
		err := s.pool.QueryRow(s.Context(), "select coalesce(string_agg(what, '' order by n), '') from chronicle where id = $1", key.ID).Scan(&story)
		if err == nil {
			break
		}
		if sqlState(err) != "40001" {
			s.Fatal(err)
		}
	}
	live := false
	for _, what := range story {
		if what == 'R' && live {
			s.Errorf("%s: recorded twice: %s; %+v", key.ID, story, got)
		}
		live = what == 'R'
	}
	if n := query[int](s.bundle, `
		select count(*) from (select id::text from charges where key = $1) c
		full join (select result from chronicle where id = $1 and what = 'R') r on r.result = c.id
		where r.result is null or c.id is null`, key.ID); n != 0 {
		s.Errorf("%s: %d charges and records do not agree: %s; %+v", key.ID, n, story, got)
	}
}

func TestRandomSchedulesOnBrokenLinesKeepThePromise(t *testing.T) {
	t.Parallel()
	s := setupSchedules(t)
	var lanes sync.WaitGroup
	const width = 4
	for lane := range width {
		lanes.Go(func() {
			for n := lane; n < long(120, 2000) && !t.Failed(); n += width {
				s.run(n)
			}
		})
	}
	lanes.Wait()
	for _, proxy := range s.proxies {
		proxy.SetRule(nil)
		proxy.CutAll() // sessions that hold nothing: begun only, or aborted, which also undoes "set local"
	}
	t.Logf("%d charges, %d records; %d were forgotten", query[int](s.bundle, "select count(*) from charges"),
		query[int](s.bundle, "select count(*) from chronicle where what = 'R'"), query[int](s.bundle, "select count(*) from chronicle where what <> 'R'"))
}

// The test shows what is not guaranteed: PostgreSQL takes silence in the middle of
// a batch for no idleness. When it fails, a limit is gone: say so in
// docs/guarantees.md.
func TestLimitClientLostInTheMiddleOfABatchHoldsItsKey(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.store, d.proxy = d.through(idempotency.Config{MaxIdle: 500 * time.Millisecond})
	cut := d.once(func(m pgproxy.Message) bool { return m.Type == 'B' && sent("insert into charges")(m) }, pgproxy.CutClient)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	call := d.start(ctx, d.store, charge(d.key.ID, 1))
	if simple := d.pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol; simple {
		d.wantOutcome(<-call, outcome{1, false, nil}) // it has no batches of several messages
		return
	}
	<-cut
	time.Sleep(1500 * time.Millisecond)
	b := *d.bundle
	b.store = b.storeOn(b.pool, idempotency.Config{Wait: 200 * time.Millisecond})
	_, _, err := b.do(charge(b.key.ID, 2))
	b.wantErr(err, idempotency.ErrInProgress)
	d.proxy.CutAll() // now the server sees that the client is gone
	d.wantOutcome(<-call, outcome{1, false, nil})
	d.effects(1)
}
