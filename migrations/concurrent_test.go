package migrations_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

func TestFiveProcessesAtOnceAllSucceed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	five(t, pool, "up")
	wantWhole(t, pool, "apart")
	five(t, pool, "down")
	wantNothing(t, pool, "apart")
}

func TestFiveProcessesAtOnceRepairTogether(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "apart")
	do(t, pool, `update apart.idempotency_migrations set version = 1, dirty = true; drop table apart.idempotency_keys`)
	five(t, pool, "up")
	wantWhole(t, pool, "apart")
}

func TestFiveProcessesUpAndDownAtOnceAllSucceed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "apart")
	var wg sync.WaitGroup
	for _, job := range []string{"up", "down"} {
		wg.Go(func() { five(t, pool, job) })
	}
	wg.Wait()
	up(t, pool, "apart")
	wantWhole(t, pool, "apart")
}

// five runs five processes at once.
func five(t *testing.T, pool *pgxpool.Pool, job string) {
	t.Helper()
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if out, err := process(t, pool, job, "apart", 0).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", job, err, out)
			}
		})
	}
	wg.Wait()
}

// The timeouts would end a wait inside the server.
func TestContextAloneBoundsTheWait(t *testing.T) {
	t.Parallel()
	for name, job := range jobs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Empty(t)
			if name == "down" {
				up(t, pool, "")
			}
			release := lock(t, pool, "public")
			impatient := pgtest.Pool(t, pool, param("lock_timeout", "20ms"), param("statement_timeout", "600ms"))
			done := make(chan error, 1)
			go func() { done <- job(t.Context(), impatient, "") }()
			select {
			case err := <-done:
				t.Fatal("did not wait: ", err)
			case <-time.After(900 * time.Millisecond):
			}
			release()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if name == "up" {
				wantWhole(t, pool, "public")
			} else {
				wantNothing(t, pool, "public")
			}
		})
	}
}

func TestCancelEndsTheWaitAtOnce(t *testing.T) {
	t.Parallel()
	for name, job := range jobs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Empty(t)
			lock(t, pool, "public")
			waiting := make(chan struct{})
			tracer := &counter{after: 5, then: func() { close(waiting) }} // past the first refusal
			other := pgtest.Pool(t, pool, param("application_name", "waiting"), traced(tracer))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- job(ctx, other, "") }()
			select {
			case <-waiting:
			case err := <-done:
				t.Fatal("did not wait: ", err)
			}
			start := time.Now()
			cancel()
			err := <-done
			if took := time.Since(start); took > time.Second {
				t.Errorf("returned after %v", took)
			}
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			wantError(t, err, `waiting for another session that is migrating schema "public"`)
			eventually(t, "the session's end", func() bool { return sessions(t, pool, "waiting") == 0 })
			if n := query[int](t, pool, `select count(*) from pg_locks where not granted and locktype = 'advisory'
				and database = (select oid from pg_database where datname = current_database())`); n != 0 {
				t.Errorf("%d sessions wait for a lock", n)
			}
		})
	}
}

// golang-migrate passes no context on. Another session is making the very table here.
func TestCancelEndsAFileThatWaitsForAnotherSession(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release := func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }
	t.Cleanup(release)
	if _, err := tx.Exec(t.Context(), "create table idempotency_keys ()"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- migrations.Up(ctx, pgtest.Pool(t, pool, param("application_name", "waiting")), "") }()
	eventually(t, "the wait for a lock", func() bool {
		return query[int](t, pool, "select count(*) from pg_stat_activity where application_name = 'waiting' and datname = current_database() and wait_event_type = 'Lock' and query like '%create table%'") == 1
	})
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("goes on to wait")
		release()
		<-done
	}
	release()
	if err := migrations.Up(t.Context(), pool, ""); err != nil {
		t.Error(err)
	}
	wantWhole(t, pool, "public")
}

func TestDeadlineEndsTheWait(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	lock(t, pool, "public")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := migrations.Up(ctx, pool, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestCancelledBeforehand(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, job := range jobs {
		if err := job(ctx, pool, ""); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := migrations.Version(ctx, pool, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("version: %v", err)
	}
}

// It is not parallel: it counts the goroutines of the process.
func TestNoGoroutineAndNoSessionIsLeft(t *testing.T) {
	pool := pgtest.Empty(t)
	other := pgtest.Pool(t, pool, param("application_name", "counted"))
	release := lock(t, pool, "public")
	before := runtime.NumGoroutine()
	for name, job := range jobs {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := job(ctx, other, ""); err == nil {
			t.Errorf("%s did not wait for the lock", name)
		}
		cancel()
	}
	release()
	up(t, other, "")
	do(t, pool, `update idempotency_migrations set version = 1; drop table idempotency_keys`)
	if err := migrations.Up(t.Context(), other, ""); err == nil {
		t.Error("no error")
	}
	down(t, other, "")
	eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	eventually(t, "sessions to end", func() bool { return sessions(t, pool, "counted") == 0 })
}

func sessions(t *testing.T, pool *pgxpool.Pool, name string) int {
	t.Helper()
	return query[int](t, pool, `select count(*) from pg_stat_activity
		where application_name = $1 and datname = current_database()`, name)
}

// lock holds the lock that golang-migrate takes for our version table, until
// release is called or the test ends.
func lock(t *testing.T, pool *pgxpool.Pool, schema string) (release func()) {
	t.Helper()
	id, err := database.GenerateAdvisoryLockId(pool.Config().ConnConfig.Database, schema, "idempotency_migrations")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `select pg_advisory_lock($1::bigint)`, id); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		conn.Conn().Close(context.Background())
		conn.Release()
	})
	t.Cleanup(release)
	return release
}

// "create schema if not exists" does not see what another session is about to commit.
func TestSchemaThatSomebodyElseMakesAtThisMomentIsUsed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `create schema other`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- migrations.Up(context.WithoutCancel(t.Context()), pool, "other") }()
	eventually(t, "Up waits for the schema", func() bool {
		return query[bool](t, pool, `select exists (select from pg_stat_activity where datname = current_database() and query like 'create schema%' and wait_event_type = 'Lock' and pid <> pg_backend_pid())`)
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantWhole(t, pool, "other")
}

func TestVersionOfATableThatIsRemovedAtThisMomentIsZero(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, removed := range []string{`table "at this moment".idempotency_migrations`, `schema "at this moment" cascade`} {
		up(t, pool, "at this moment")
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.Background())
		if _, err := tx.Exec(t.Context(), `lock table "at this moment".idempotency_migrations`); err != nil {
			t.Fatal(err)
		}
		var version uint
		done := make(chan error, 1)
		go func() {
			var err error
			version, err = migrations.Version(context.WithoutCancel(t.Context()), pool, "at this moment")
			done <- err
		}()
		eventually(t, "Version waits for the lock", func() bool {
			return query[bool](t, pool, `select exists (select from pg_locks where not granted and relation = '"at this moment".idempotency_migrations'::regclass)`)
		})
		if _, err := tx.Exec(t.Context(), `drop `+removed); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || version != 0 {
			t.Errorf("version %d, %v", version, err)
		}
	}
}
