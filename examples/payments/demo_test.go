package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// play runs scenes in a database of the test.
func play(t *testing.T, scenes ...scene) (*demo, error) {
	t.Helper()
	d, err := newDemo(t.Output(), newTables(t))
	if err != nil {
		t.Fatal(err)
	}
	return d, d.run(t.Context(), scenes)
}

// byHand is a scene of SQL. The change is declared, so that the scene itself
// is as expected and the rest of the demo has to find out.
func byHand(sql string, change ledger) scene {
	return scene{"SQL by hand", change, func(d *demo, ctx context.Context) error {
		_, err := d.pool.Exec(ctx, sql)
		return err
	}}
}

func wantFailures(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("the demo noticed nothing")
	}
	for _, line := range want {
		if !strings.Contains(err.Error(), line) {
			t.Errorf("the demo's error does not say %q:\n%v", line, err)
		}
	}
	if got := strings.Count(err.Error(), "\n"); got != len(want) {
		t.Errorf("the demo's error has %d lines, want %d:\n%v", got, len(want), err)
	}
}

func TestScenesAreAsExpected(t *testing.T) {
	t.Parallel()
	d, err := play(t, scenes...)
	if err != nil {
		t.Fatal(err)
	}
	wantLedger(t, d.pool, ledger{Written: 6, Charges: 4, Taken: 85_00, Left: 25_00, Declines: 1, Keys: 5})
	if d.answers != 208 || len(d.receipts) != 5 {
		t.Errorf("%d answers to %d orders, want 208 to 5", d.answers, len(d.receipts))
	}
}

func TestReconciliationFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		sql    string
		change ledger
		want   []string
	}{
		{
			"a double charge",
			`insert into charges (account, amount) select account, amount from charges where id = 1`,
			ledger{Written: 1, Charges: 1, Taken: 25_00},
			[]string{
				"alice: opening = balance + charges: expected 100.00, found 125.00",
				"successful operations = charges: expected 1, found 2",
			},
		},
		{
			"a double charge that was paid",
			`with twice as (insert into charges (account, amount) select account, amount from charges where id = 1 returning *)
			update accounts set balance = balance - amount from twice where accounts.id = account`,
			ledger{Written: 1, Charges: 1, Taken: 25_00, Left: -25_00},
			[]string{
				"successful operations = charges: expected 1, found 2",
			},
		},
		{
			"money that went to another account",
			`update accounts set balance = balance + case id when 'bob' then 1 else -1 end`,
			ledger{},
			[]string{
				"alice: opening = balance + charges: expected 100.00, found 99.99",
				"bob: opening = balance + charges: expected 10.00, found 10.01",
			},
		},
		{
			"a charge that is gone",
			`delete from charges`,
			ledger{Charges: -1, Taken: -25_00},
			[]string{
				"alice: opening = balance + charges: expected 100.00, found 75.00",
				"successful operations = charges: expected 1, found 0",
				"receipts that name their charge: expected 1, found 0",
			},
		},
		{
			"a refusal nobody was told",
			`insert into declines (account, amount, reason) values ('bob', 1, 'none')`,
			ledger{Declines: 1},
			[]string{"refused operations = declines: expected 0, found 1"},
		},
		{
			"a key that is gone",
			`delete from idempotency_keys`,
			ledger{Keys: -1},
			[]string{
				"operations = keys: expected 1, found 0",
				"receipts recorded under their key: expected 1, found 0",
			},
		},
		{
			"a receipt that says something else",
			`update idempotency_keys set result = convert_to(replace(convert_from(result, 'UTF8'), '2500', '2501'), 'UTF8')`,
			ledger{},
			[]string{"receipts recorded under their key: expected 1, found 0"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := play(t, scenes[0], byHand(tt.sql, tt.change))
			wantFailures(t, err, tt.want...)
		})
	}
}

func TestSceneFindsASecondExecution(t *testing.T) {
	t.Parallel()
	// Without its key the retry is a first call.
	_, err := play(t, scenes[0], byHand(`delete from idempotency_keys`, ledger{Keys: -1}), scenes[1])
	wantFailures(t, err,
		"3. Its retry: receipt of order-1: expected charge 1, 25.00 from alice, 75.00 left, found charge 2, 25.00 from alice, 50.00 left",
		"3. Its retry: replayed: expected true, found false",
		"3. Its retry: written: expected 1, found 2",
		"3. Its retry: charges: expected 1, found 2",
		"3. Its retry: taken: expected 25.00, found 50.00",
		"3. Its retry: left: expected 85.00, found 60.00",
		"3. Its retry: keys: expected 0, found 1",
		"reconciliation: successful operations = charges: expected 1, found 2",
		"reconciliation: receipts recorded under their key: expected 1, found 0",
	)
}

func TestSceneFindsAMissingError(t *testing.T) {
	t.Parallel()
	right := scene{"The same key, the same amount", ledger{}, func(d *demo, ctx context.Context) error {
		return d.fails(ctx, d.service, "order-1", order1, idempotency.ErrKeyReused)
	}}
	_, err := play(t, scenes[0], right)
	wantFailures(t, err, "2. The same key, the same amount: error: expected "+idempotency.ErrKeyReused.Error()+", found <nil>")
}

func TestSceneFindsAWorkerThatWasNotKilled(t *testing.T) {
	t.Parallel()
	alive := scene{"A worker that ends by itself", ledger{Written: 1}, func(d *demo, ctx context.Context) error {
		w, err := d.startWorker(ctx, "order-4", order4, "-freeze")
		if err != nil {
			return err
		}
		if _, err := w.answer(); err != nil {
			return err
		}
		w.in.Close()
		return w.wasKilled()
	}}
	if _, err := play(t, alive); err == nil || !strings.Contains(err.Error(), "it should have been killed, and ended with exit status 1") {
		t.Errorf("the demo returned %v", err)
	}
}

// A stopper is a reader of the demo's output who has seen enough.
type stopper struct {
	bytes.Buffer
	at   string
	stop func(error)
}

func (s *stopper) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(s.at)) {
		s.stop(errors.New("enough"))
	}
	return s.Buffer.Write(p)
}

func TestDatabaseIsGoneAfterwards(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(pgtest.Empty(t))
	for name, at := range map[string]string{
		"the end":           "never",
		"a stop":            "3. 200 duplicates",
		"a stop in a scene": "not committed",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			out := &stopper{at: at, stop: cancel}
			err := run(ctx, nil, url, nil, out)
			if cause := context.Cause(ctx); !errors.Is(err, cause) {
				t.Errorf("the demo returned %v, want %v", err, cause)
			}
			wantGone(t, url, regexp.MustCompile(`payments_demo_\w+`).FindString(out.String()))
		})
	}
}

func wantGone(t *testing.T, url, database string) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var left int
	if err := pool.QueryRow(t.Context(), `select count(*) from pg_database where datname = $1`, database).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if database == "" || left != 0 {
		t.Errorf("%d databases named %q are left", left, database)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, url, arg, want string }{
		{"no server is named", "", "", "run make demo, or set DATABASE_URL"},
		{"the server is not there", "postgres://nobody@127.0.0.1:1/none", "", "cannot reach the server of DATABASE_URL"},
		{"the URL is none", "postgres://nobody@:port/", "", "DATABASE_URL: "},
		{"the command is none", "postgres:///", "serve", `no command "serve": run payments without arguments`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var args []string
			if tt.arg != "" {
				args = []string{tt.arg}
			}
			var out bytes.Buffer
			err := run(t.Context(), args, tt.url, os.Stdin, &out)
			if err == nil || !strings.Contains(err.Error(), tt.want) || out.Len() > 0 {
				t.Errorf("run = %v, printed %q; want an error that says %q", err, out.String(), tt.want)
			}
		})
	}
}
