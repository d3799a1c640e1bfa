package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/history/journal"
)

// A worker is this process.
type worker struct {
	job     journal.Job
	journal *journal.Writer
	calls   counter

	pool   *pgxpool.Pool
	stores []*idempotency.Store // two on pool, each with a gate of its own

	// Removals come on pools of their own, so that the database can tell who
	// removed a row by the session's application_name.
	deletes, purges *idempotency.Store
	removing        []*pgxpool.Pool
}

func newWorker(job journal.Job) (*worker, error) {
	w := &worker{job: job}
	err := w.open()
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *worker) open() (err error) {
	if w.journal, err = journal.Create(w.job.Journal); err != nil {
		return err
	}
	// Two connections for each caller: a mutation may need a second one.
	if w.pool, err = w.connect("worker", 2*int32(w.job.Callers), nil); err != nil {
		return err
	}
	for _, cfg := range w.configs() {
		store, err := idempotency.NewWithConfig(w.pool, cfg)
		if err != nil {
			return err
		}
		w.stores = append(w.stores, store)
	}
	if w.deletes, err = w.storeForRemovals("delete", signDelete); err != nil {
		return err
	}
	w.purges, err = w.storeForRemovals("purge", nil)
	return err
}

// configs are those of the stores of this process: one whose callers wait for
// each other at the default isolation level, and one at a level above it, whose
// callers do not wait in every other process.
func (w *worker) configs() []idempotency.Config {
	waits := idempotency.Config{
		Retention: w.job.Retention, MaxIdle: w.job.MaxIdle, Wait: w.job.Wait,
		Observe: observe,
	}
	stricter := waits
	stricter.TxOptions.IsoLevel = pgx.RepeatableRead
	if chance(0.5) {
		stricter.TxOptions.IsoLevel = pgx.Serializable
	}
	if chance(0.5) {
		stricter.Wait = -1
	}
	return []idempotency.Config{waits, stricter}
}

func (w *worker) storeForRemovals(name string, sign func(context.Context, *pgx.Conn) (bool, error)) (*idempotency.Store, error) {
	pool, err := w.connect(name, 2, sign)
	if err != nil {
		return nil, err
	}
	w.removing = append(w.removing, pool)
	return idempotency.New(pool), nil
}

func (w *worker) connect(name string, size int32, sign func(context.Context, *pgx.Conn) (bool, error)) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(w.job.URL)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = size
	cfg.PrepareConn = sign
	conn := cfg.ConnConfig
	conn.Host, conn.Port, conn.TLSConfig, conn.Fallbacks = "127.0.0.1", w.job.Port, nil, nil
	conn.ConnectTimeout = 3 * time.Second // on a busy machine, less is spent on connections that nobody waits for
	conn.DialFunc = dialLate
	conn.RuntimeParams["application_name"] = name
	// Store.MaxIdle is for the transactions of Do. This is for those of DoTx's
	// callers, which would keep their key for as long as a half-open link lasts.
	conn.RuntimeParams["idle_in_transaction_session_timeout"] = "1000"
	return pgxpool.NewWithConfig(context.Background(), cfg)
}

func (w *worker) close() {
	if w.pool != nil {
		w.pool.Close()
	}
	for _, pool := range w.removing {
		pool.Close()
	}
}

// work returns when stop is closed and the calls under way have ended.
func (w *worker) work(stop <-chan struct{}) {
	var wg sync.WaitGroup
	for range w.job.Callers {
		wg.Go(func() { repeat(stop, 10*time.Millisecond, w.call) })
	}
	wg.Go(func() { repeat(stop, 200*time.Millisecond, w.purge) })
	wg.Wait()
}

func repeat(stop <-chan struct{}, longestPause time.Duration, do func()) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(rand.N(longestPause)):
			do()
		}
	}
}

func (w *worker) purge() {
	ctx, cancel := context.WithTimeout(context.Background(), callBound)
	defer cancel()
	w.purges.Purge(ctx) // a lost connection is no concern of the history
}

func chance(p float64) bool { return rand.Float64() < p }
