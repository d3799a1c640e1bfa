package scale

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/bench/results"
	"github.com/pgidem/idempotency/bench/server"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func small(log io.Writer) Settings {
	return Settings{
		DSN: os.Getenv("DATABASE_URL"), Rows: 2 * fillBatch, Slice: 10 * time.Millisecond, Rounds: 1, Pool: 8,
		Window: 500 * time.Millisecond, Pairs: 1, Kept: true, Log: log,
	}
}

// clean removes what a failed test has left.
func clean(t *testing.T) {
	t.Helper()
	remove := func() {
		b := &bench{Settings: small(io.Discard)}
		var err error
		if b.server, err = server.Open(context.Background(), b.DSN); err != nil {
			t.Fatal(err)
		}
		defer b.close()
		if err := b.forget(context.Background()); err != nil {
			t.Error(err)
		}
	}
	remove()
	t.Cleanup(remove)
}

// A trip wire cancels a run when its log says something.
type tripWire struct {
	bytes.Buffer
	text   string
	cancel context.CancelFunc
}

func (w *tripWire) Write(line []byte) (int, error) {
	if w.text != "" && strings.Contains(string(line), w.text) {
		w.cancel()
	}
	return w.Buffer.Write(line)
}

func TestInterruptedRunGoesOnWhereItWas(t *testing.T) {
	if os.Getenv("DATABASE_URL") == "" {
		t.Fatal("DATABASE_URL is not set: run `make test-modules`")
	}
	clean(t)
	for _, at := range []string{"15000 rows: replay", "50000 rows: replay, 8 callers", "one scope, 50000 rows: purge", "scopes: filling 5000 to"} {
		ctx, cancel := context.WithCancel(t.Context())
		log := &tripWire{text: at, cancel: cancel}
		_, err := Run(ctx, small(log))
		if err == nil || !strings.Contains(err.Error(), "interrupted") {
			t.Fatalf("at %q: %v\n%s", at, err, log)
		}
	}
	other := small(io.Discard)
	other.Rows++
	if _, err := Run(t.Context(), other); err == nil || !strings.Contains(err.Error(), "-fresh") {
		t.Errorf("a run of another size: %v", err)
	}
	log := &tripWire{}
	run, err := Run(t.Context(), small(log))
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if strings.Contains(log.String(), allShapes[0].name) {
		t.Errorf("it has measured again what was done:\n%s", log)
	}
	seen := make(map[string]int)
	for _, p := range run.Points {
		seen[p.Shape]++
		if p.Ratio <= 0 || p.Full.PerSecond <= 0 {
			t.Errorf("nothing was measured: %+v", p)
		}
		if p.Section == results.Replay && p.Callers == 1 && p.FullWAL > 100 {
			t.Errorf("%d rows of %s: a replay writes %.0f bytes of WAL", p.Rows, p.Shape, p.FullWAL)
		}
	}
	for _, s := range allShapes {
		if seen[s.name] != 16 { // 3 sizes of 2 sections, 2 more of the last, with 1 and 8 callers
			t.Errorf("%s: %d points, want 16", s.name, seen[s.name])
		}
	}
	if len(run.Purges) != 1 || run.Purges[0].Deleted == 0 {
		t.Errorf("purges: %+v", run.Purges)
	}
}

// The keys that replays ask for are those of the rows that SQL has made.
func TestFilledRowsAreTheKeysThatAreReplayed(t *testing.T) {
	for _, s := range allShapes {
		pool := pgtest.New(t, pgtest.MaxConns(1))
		fill(t, pool, s)
		var rows int
		if err := pool.QueryRow(t.Context(), "select count(*) from idempotency_keys").Scan(&rows); err != nil || rows != 1000 {
			t.Errorf("%s: %d rows, %v", s.name, rows, err)
		}
		for _, i := range []int64{1, 2, 999, 1000} {
			key := s.keyOf(i)
			var n int
			err := pool.QueryRow(t.Context(), `
				select count(*) from idempotency_keys
				where id = $1 and scope = $2 and fingerprint = $3 and completed_at is not null`,
				key.ID, key.Scope, key.Fingerprint[:]).Scan(&n)
			if err != nil || n != 1 {
				t.Errorf("%s: %d rows with the key of row %d, %v", s.name, n, i, err)
			}
		}
		if !s.random {
			var right bool
			if err := pool.QueryRow(t.Context(), "select max(id) < $1 from idempotency_keys", s.newKey().ID).Scan(&right); err != nil || !right {
				t.Errorf("%s: a new id is not at the right edge, %v", s.name, err)
			}
		}
	}
}

func fill(t *testing.T, pool *pgxpool.Pool, s shape) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), fillSQL); err != nil {
		t.Fatal(err)
	}
	for _, first := range []int{1, 2, 1} { // the odd ones, the even ones, and what is there already
		if _, err := pool.Exec(t.Context(), "call pg_temp.fill($1, 1000, 2, $2, $3, '1 day')", first, s.random, s.scopes); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDiskThatIsTooSmallIsSaidBeforeAnythingIsFilled(t *testing.T) {
	clean(t)
	set := small(io.Discard)
	set.Rows = 1 << 40
	_, err := Run(t.Context(), set)
	if err == nil || !strings.Contains(err.Error(), "-force") {
		t.Errorf("%v", err)
	}
}
