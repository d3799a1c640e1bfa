package failover_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// workerEnv makes the test binary a process that calls Do until it is told to
// end, and prints each answer; its value is a job as JSON.
const workerEnv = "FAILOVER_WORKER"

type job struct {
	Name    string
	DSN     string
	Callers int
}

// An answer is what a client got for a key in the end. It asked until it got one.
type answer struct {
	Key      string
	Value    string // the id of the execution
	At       time.Time
	Took     time.Duration
	Replayed bool
	InDoubt  int // COMMITs whose answer was lost
	Unknown  int // ErrOutcomeUnknown
	Failed   int // calls that did not succeed
	GaveUp   string
}

// deadline is how long a client waits for one call.
const deadline = 5 * time.Second

// patience is how long a client asks for one key.
const patience = 3 * time.Minute

func work(task string) int {
	var j job
	if err := json.Unmarshal([]byte(task), &j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg, err := pgxpool.ParseConfig(j.DSN)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg.MaxConns = int32(j.Callers)
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer pool.Close()
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Observe: observe})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	j.serve(store)
	return 0
}

func (j job) serve(store *idempotency.Store) {
	end := make(chan struct{})
	go func() {
		if !bufio.NewScanner(os.Stdin).Scan() {
			os.Exit(1) // the test is gone
		}
		close(end)
	}()
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	var wg sync.WaitGroup
	for i := range j.Callers {
		wg.Go(func() {
			c := client{store: store, name: fmt.Sprintf("%s.%d", j.Name, i)}
			for {
				select {
				case <-end:
					return
				default:
				}
				a := c.ask(c.nextKey())
				mu.Lock()
				out.Encode(a)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// A client makes one call after the other.
type client struct {
	store *idempotency.Store
	name  string
	keys  []string // asked for so far
}

// nextKey is a new key, one that other clients ask for at this moment, or one
// that this client has had an answer for.
func (c *client) nextKey() (key string) {
	switch n := rand.N(10); {
	case n < 2 && len(c.keys) > 0:
		return c.keys[rand.N(len(c.keys))]
	case n < 5:
		key = fmt.Sprint("shared ", time.Now().UnixMilli()/20)
	default:
		key = fmt.Sprint(c.name, " ", len(c.keys))
	}
	c.keys = append(c.keys, key)
	return key
}

// ask calls until there is an answer.
func (c *client) ask(key string) *answer {
	a := &answer{Key: key}
	start := time.Now()
	for {
		value, replayed, err := c.call(a)
		a.At, a.Took = time.Now(), time.Since(start)
		if err == nil {
			a.Value, a.Replayed = value, replayed
			return a
		}
		a.Failed++
		if errors.Is(err, idempotency.ErrOutcomeUnknown) {
			a.Unknown++
		}
		if a.Took > patience {
			a.GaveUp = err.Error()
			return a
		}
		time.Sleep(10*time.Millisecond + rand.N(20*time.Millisecond))
	}
}

func (c *client) call(a *answer) (value string, replayed bool, err error) {
	ctx := context.WithValue(context.Background(), answerKey{}, a)
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	return idempotency.Do(ctx, c.store, idempotency.Key{Scope: "test", ID: a.Key}, execute(a.Key))
}

type answerKey struct{}

// observe notes what only the Store knows of the client's call.
func observe(ctx context.Context, e idempotency.Event) {
	if a, ok := ctx.Value(answerKey{}).(*answer); ok && e.InDoubt != "" {
		a.InDoubt++
	}
}

// execute is the business: one row, whose id is the result.
func execute(key string) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (id string, err error) {
		err = tx.QueryRow(ctx, "insert into executions (key) values ($1) returning id::text", key).Scan(&id)
		return id, err
	}
}
