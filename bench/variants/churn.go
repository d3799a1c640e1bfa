package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// churnStep is the number of calls, and of rows purged beside them, between two
	// looks at the table.
	churnStep = 2000

	// checkpointEvery is in steps. It decides how often a page is logged in whole.
	checkpointEvery = 5

	// churnSessions make them.
	churnSessions = 4
)

// A stretch is so many calls on the server.
type stretch struct {
	calls, scopes int
	every         int           // calls in one transaction
	lifetime      time.Duration // of their records
	result        []byte
}

// callsProcedure makes calls on the server, with the package's claim and record.
func (s *site) callsProcedure() string {
	id := "lpad(to_hex((extract(epoch from clock_timestamp()) * 1000000)::bigint), 16, '0') || substr(md5(random()::text), 1, 20)"
	if s.randomIDs {
		id = "gen_random_uuid()::text"
	}
	claim := strings.NewReplacer("$1", "_id", "$2", "_scope", "$3", "hashtextextended(_id, 0)", "$4", "_lifetime").Replace(s.sql.claim)
	record := strings.NewReplacer("$1", "_id", "$2", "_scope", "$3", "_row", "$4", "_print", "$5", "_result", "$6", "_lifetime", "$7", "null").Replace(s.sql.record)
	return fmt.Sprintf(`
create or replace procedure calls(_calls int, _every int, _scopes int, _lifetime bigint, _result bytea) language plpgsql as $calls$
declare
	_id text;
	_scope text;
	_row tid;
	_strict boolean;
	_one bigint;
	_print bytea := decode(repeat('00', 32), 'hex');
begin
	for i in 1.._calls loop
		_id := %s;
		_scope := 'customer-' || floor(random() * _scopes);
		%s into strict _row, _strict;
		%s into strict _one;
		if i %% _every = 0 then
			commit;
		end if;
	end loop;
end
$calls$`, id, claim, record)
}

// make makes calls in some sessions at a time.
func (s *site) make(ctx context.Context, st stretch) error {
	errs := make([]error, churnSessions)
	var wg sync.WaitGroup
	for i := range churnSessions {
		wg.Go(func() {
			_, errs[i] = s.pool.Exec(ctx, "call calls($1, $2, $3, $4, $5)",
				st.calls/churnSessions, st.every, st.scopes, st.lifetime.Microseconds(), st.result)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// A churned is what a table came to while calls were made and as many rows purged.
type churned struct {
	heap, indexes int64 // bytes at the end
	heapMost      int64
	vacuums       int
	vacuumWAL     int64
	purgePages    int64 // of the purges between two vacuums: the most
	wal           int64 // of calls, purges and vacuums
	calls         int64
}

// churnOn keeps so many live rows, makes calls and purges beside, and vacuums when
// so many rows are dead, as autovacuum would; 0 is never.
func (l *lab) churnOn(ctx context.Context, s *site, result []byte, keep, vacuumAt int) (c churned, err error) {
	if _, err := s.pool.Exec(ctx, s.callsProcedure()); err != nil {
		return c, err
	}
	for range keep / churnStep {
		if err := s.step(ctx, result, false); err != nil {
			return c, err
		}
	}
	if _, err := s.pool.Exec(ctx, "vacuum (analyze) idempotency_keys"); err != nil {
		return c, err
	}
	began, err := l.wal(ctx)
	if err != nil {
		return c, err
	}
	dead := 0
	for i := range l.churn / churnStep {
		if i%checkpointEvery == 0 {
			if err := l.exec(ctx, "checkpoint"); err != nil {
				return c, err
			}
		}
		if err := s.step(ctx, result, true); err != nil {
			return c, err
		}
		c.calls += churnStep
		dead += churnStep
		if err := l.look(ctx, s, &c); err != nil {
			return c, err
		}
		if vacuumAt == 0 || dead < vacuumAt {
			continue
		}
		p, err := l.purge(ctx, s)
		if err != nil {
			return c, err
		}
		c.purgePages = max(c.purgePages, p.pages)
		if err := l.vacuumNow(ctx, s, &c); err != nil {
			return c, err
		}
		dead = 0
	}
	ended, err := l.wal(ctx)
	if err != nil {
		return c, err
	}
	c.wal = ended - began
	if c.purgePages == 0 {
		p, err := l.purge(ctx, s)
		if err != nil {
			return c, err
		}
		c.purgePages = p.pages
	}
	return c, nil
}

func (l *lab) vacuumNow(ctx context.Context, s *site, c *churned) error {
	before, err := l.wal(ctx)
	if err != nil {
		return err
	}
	if _, err := s.pool.Exec(ctx, "vacuum idempotency_keys"); err != nil {
		return err
	}
	after, err := l.wal(ctx)
	c.vacuums++
	c.vacuumWAL += after - before
	return err
}

func (l *lab) look(ctx context.Context, s *site, c *churned) error {
	err := l.admin.QueryRow(ctx, "select pg_relation_size($1::regclass), pg_indexes_size($1::regclass)",
		s.schema+".idempotency_keys").Scan(&c.heap, &c.indexes)
	c.heapMost = max(c.heapMost, c.heap)
	return err
}

// step makes churnStep calls, and purges as many rows beside them.
func (s *site) step(ctx context.Context, result []byte, purge bool) error {
	var wg sync.WaitGroup
	var purged error
	if purge {
		wg.Go(func() {
			for range churnStep / 1000 {
				_, err := s.pool.Exec(ctx, s.sql.purge, 1000)
				purged = errors.Join(purged, err)
			}
		})
	}
	err := s.make(ctx, stretch{calls: churnStep, scopes: 1000, every: 1, result: result})
	wg.Wait()
	return errors.Join(err, purged)
}

// kept is how many live rows a table has while it is churned.
func (l *lab) kept() int {
	if l.brief {
		return 2 * churnStep
	}
	return 40_000
}

// byDefault is when autovacuum comes by default: 50 rows and a fifth of the table.
func (l *lab) byDefault() int { return 50 + l.kept()/5 }

func fillfactorIs(percent string) []edit {
	return []edit{{"with (fillfactor = 95)", "with (fillfactor = " + percent + ")"}}
}

// fillfactor: the room on a page for the update that records a result.
func (l *lab) fillfactor(ctx context.Context) error {
	large := []byte(`"` + strings.Repeat("x", 1498) + `"`) // not so large that it is compressed
	for _, of := range []struct {
		result   []byte
		percents []string
	}{
		{smallResult, []string{"100", "95", "90", "80", "70", "50"}},
		{large, []string{"100", "95", "90", "70"}},
	} {
		if err := l.fillfactorOf(ctx, of.result, of.percents); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) fillfactorOf(ctx context.Context, result []byte, percents []string) error {
	t := newTable("fillfactor", "HOT updates", "heap MB at the end", "heap B per live row", "indexes MB", "WAL B per call")
	for _, percent := range percents {
		v := variant{name: percent, table: fillfactorIs(percent)}
		if percent == "95" {
			v = ours("95 (as it is)")
		}
		s, err := l.site(ctx, way{async: true}, v)
		if err != nil {
			return err
		}
		c, err := l.churnOn(ctx, s, result, l.kept(), l.byDefault())
		if err != nil {
			l.leave([]*site{s})
			return fmt.Errorf("%s: %w", v.name, err)
		}
		hot, err := l.hot(ctx, s)
		l.leave([]*site{s})
		if err != nil {
			return err
		}
		t.add(v.name, hot, megabytes(c.heap), grouped(c.heap/int64(l.kept())), megabytes(c.indexes), grouped(c.wal/c.calls))
	}
	l.show(fmt.Sprintf("Fillfactor, a result of %s B: %s calls of %d sessions with as many rows purged beside, %s rows live, vacuumed as by default, a checkpoint every %s calls",
		grouped(int64(len(result))), grouped(int64(l.churn)), churnSessions, grouped(int64(l.kept())), grouped(checkpointEvery*churnStep)), t)
	return nil
}

// vacuum: when to clean a table that is inserted into and purged all the time.
func (l *lab) vacuum(ctx context.Context) error {
	t := newTable("vacuum when so many rows are dead", "vacuums", "their WAL B per call", "all WAL B per call", "heap MB at most", "indexes MB", "pages that a purge of 1,000 touches before one, at most")
	for _, v := range []struct {
		name string
		at   int
	}{
		{"never", 0}, {"50 %", l.kept() / 2}, {"20 % (PostgreSQL's default)", l.byDefault()}, {"10 %", l.kept() / 10}, {"5 %", l.kept() / 20},
	} {
		s, err := l.site(ctx, way{async: true}, ours(v.name))
		if err != nil {
			return err
		}
		c, err := l.churnOn(ctx, s, smallResult, l.kept(), v.at)
		l.leave([]*site{s})
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
		t.add(v.name, fmt.Sprint(c.vacuums), grouped(c.vacuumWAL/c.calls), grouped(c.wal/c.calls), megabytes(c.heapMost), megabytes(c.indexes), grouped(c.purgePages))
	}
	l.show(fmt.Sprintf("Vacuum: %s calls with as many rows purged beside, %s rows live", grouped(int64(l.churn)), grouped(int64(l.kept()))), t)
	return nil
}
