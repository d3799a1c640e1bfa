package idempotency_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// workerEnv makes the test binary a process that calls Do and prints what it
// got; its value is a job as JSON.
const workerEnv = "IDEMPOTENCY_TEST_WORKER"

type job struct {
	URL      string
	Database string
	Port     uint16 // of a proxy on this machine, or 0
	Key      idempotency.Key
	Amount   int
	Callers  int
	Keys     int // that each caller calls with; 0 is Key alone
	MaxIdle  time.Duration
	Shots    bool     // every second caller sends one statement
	Rides    []string // that each caller takes, from this provider, until it has a receipt, for two minutes at most; the other fields but MaxIdle do not count
	Provider string
	Once     bool   // one attempt
	Hang     string // "": not at all; "client": the function sleeps; "server": its statement does; "briefly": both go on
}

type report struct {
	Value    int
	Replayed bool
	Err      string

	Ride    string
	Receipt receipt
}

func work() int {
	var j job
	if err := json.Unmarshal([]byte(os.Getenv(workerEnv)), &j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	cfg, err := pgxpool.ParseConfig(j.URL)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg.ConnConfig.Database = j.Database
	cfg.MaxConns = 4
	opts := withIsolation(nil)
	if j.Port != 0 {
		opts = append(opts, address("127.0.0.1", j.Port))
	}
	for _, opt := range opts {
		opt(cfg)
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer pool.Close()
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{MaxIdle: j.MaxIdle})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for caller := range j.Callers {
		for _, id := range j.Rides {
			wg.Go(func() {
				r := j.ride(ctx, store, id)
				mu.Lock()
				defer mu.Unlock()
				json.NewEncoder(os.Stdout).Encode(r)
			})
		}
		if len(j.Rides) > 0 {
			continue
		}
		for k := range max(j.Keys, 1) {
			wg.Go(func() {
				r := j.call(ctx, store, k, j.Shots && caller%2 == 0)
				mu.Lock()
				defer mu.Unlock()
				json.NewEncoder(os.Stdout).Encode(r)
			})
		}
	}
	wg.Wait()
	return 0
}

func (j job) call(ctx context.Context, store *idempotency.Store, k int, shot bool) report {
	if j.Keys > 0 {
		j.Key.ID = fmt.Sprintf("%s-%d", j.Key.ID, k)
	}
	call := func() (int, bool, error) { return idempotency.Do(ctx, store, j.Key, j.run) }
	if shot {
		call = func() (int, bool, error) { return j.shoot(ctx, store) }
	}
	value, replayed, err := call()
	r := report{Value: value, Replayed: replayed}
	if err != nil {
		r.Err = err.Error()
	}
	return r
}

// shoot is run as one statement.
func (j job) shoot(ctx context.Context, store *idempotency.Store) (int, bool, error) {
	sleep := 0
	if j.Hang == "server" {
		fmt.Println("hanging")
		sleep = 60
	}
	return idempotency.QueryRow[int](ctx, store, j.Key, "insert into charges (key, amount) select $1, $2 + length(pg_sleep($3)::text) returning amount", j.Key.ID, j.Amount, sleep)
}

func (j job) run(ctx context.Context, tx pgx.Tx) (int, error) {
	if _, err := charge(j.Key.ID, j.Amount)(ctx, tx); err != nil {
		return 0, err
	}
	switch j.Hang {
	case "briefly":
		time.Sleep(50 * time.Millisecond)
	case "client":
		fmt.Println("hanging")
		time.Sleep(3 * time.Second)
	case "server":
		fmt.Println("hanging")
		if _, err := tx.Exec(ctx, "select pg_sleep(60)"); err != nil {
			return 0, err
		}
	}
	return j.Amount, nil
}

// A process is a worker under test.
type process struct {
	*bundle
	cmd *exec.Cmd
	out *bufio.Scanner
}

func (b *bundle) spawn(j job) *process {
	b.Helper()
	j.URL, j.Database, j.Key = os.Getenv("DATABASE_URL"), b.pool.Config().ConnConfig.Database, b.key
	task, err := json.Marshal(j)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), workerEnv+"="+string(task))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		io.Copy(io.Discard, out)
		cmd.Wait()
	})
	return &process{bundle: b, cmd: cmd, out: bufio.NewScanner(out)}
}

// hangs waits until the process is inside its function.
func (p *process) hangs() {
	p.Helper()
	if !p.out.Scan() || p.out.Text() != "hanging" {
		p.Fatalf("the worker said %q", p.out.Text())
	}
}

func (p *process) report() report {
	p.Helper()
	var r report
	if !p.out.Scan() {
		p.Fatal("the worker ended without a report")
	}
	if err := json.Unmarshal(p.out.Bytes(), &r); err != nil {
		p.Fatalf("%s: %v", p.out.Text(), err)
	}
	return r
}

func TestEightProcessesOfTwentyFiveCallersExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var processes []*process
	for i := range 8 {
		processes = append(processes, b.spawn(job{Amount: i + 1, Callers: 25, Shots: i%2 == 0}))
	}
	executed, value := 0, 0
	for _, p := range processes {
		for range 25 {
			r := p.report()
			if value == 0 {
				value = r.Value
			}
			if r.Err != "" || r.Value != value {
				t.Errorf("got %+v, others got %d", r, value)
			}
			if !r.Replayed {
				executed++
			}
		}
	}
	if executed != 1 {
		t.Errorf("%d executions", executed)
	}
	b.effects(1)
	b.replays(value)
}

func TestKilledProcessLeavesNothingAndTheNextCallRuns(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"client", "server"} {
		t.Run("at work in the "+where, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			p := b.spawn(job{Amount: 1, Callers: 1, Hang: where})
			p.hangs()
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			b.executes(2) // waits 10 s at most
			t.Logf("the key was free %v after the kill", time.Since(start))
			b.effects(1)
		})
	}
}

func TestProcessKilledInAStatementLeavesNothingAndTheNextCallRuns(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	p := b.spawn(job{Amount: 1, Callers: 1, Shots: true, Hang: "server"})
	p.hangs()
	b.eventually("the statement runs", func() bool {
		return query[int](b, "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'") == 1
	})
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.executes(2) // waits 10 s at most
	b.effects(1)
}

func TestFrozenProcessIsFencedAfterMaxIdle(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	p := b.spawn(job{Amount: 1, Callers: 1, Hang: "client", MaxIdle: 500 * time.Millisecond})
	p.hangs()
	p.signal(syscall.SIGSTOP)
	b.executes(2)
	p.signal(syscall.SIGCONT)
	// The thawed process finds its COMMIT refused, asks, and gets the result.
	if r := p.report(); r.Err != "" || r.Value != 2 || !r.Replayed {
		t.Errorf("the thawed process got %+v", r)
	}
	b.effects(1)
	b.replays(2)
}
