package idemweb_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/idemweb"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A recorder keeps each statement that names a table with rows, with its arguments.
type recorder struct {
	mu         sync.Mutex
	statements map[string][]any
}

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := strings.ReplaceAll(data.SQL, "'\"public\"", "") // a name as a text, of which the catalog is asked
	if strings.Contains(text, `"public"."idempotency_`) && !strings.HasPrefix(text, "lock table") {
		args := data.Args
		for len(args) > 0 {
			if _, ok := args[0].(pgx.QueryExecMode); !ok {
				break
			}
			args = args[1:]
		}
		r.statements[data.SQL] = args
	}
	return ctx
}

func (r *recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A node is one of a plan that was executed.
type node struct {
	Type    string  `json:"Node Type"`
	Table   string  `json:"Relation Name"`
	Index   string  `json:"Index Name"`
	Rows    float64 `json:"Actual Rows"`
	Loops   float64 `json:"Actual Loops"`
	Removed float64 `json:"Rows Removed by Filter"`
	Plans   []node  `json:"Plans"`
}

func (n node) walk(visit func(node)) {
	visit(n)
	for _, child := range n.Plans {
		child.walk(visit)
	}
}

// explain is the plan of a statement, executed and rolled back, with the settings of the
// page and the statistics that the table has.
func explain(t *testing.T, pool *pgxpool.Pool, sql string, args []any) (plan node) {
	t.Helper()
	undo := errors.New("undo")
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		for _, set := range []string{"enable_seqscan to off", "plan_cache_mode to force_custom_plan", "max_parallel_workers_per_gather to 0"} {
			if _, err := tx.Exec(t.Context(), "set local "+set); err != nil {
				return err
			}
		}
		var raw []byte
		if err := tx.QueryRow(t.Context(), "explain (analyze, format json, timing off) "+sql, args...).Scan(&raw); err != nil {
			return err
		}
		var plans []struct{ Plan node }
		if err := json.Unmarshal(raw, &plans); err != nil {
			return err
		}
		plan = plans[0].Plan
		return undo
	})
	if !errors.Is(err, undo) {
		t.Fatalf("%v: %s", err, sql)
	}
	return plan
}

const tableRows = 200_000

// Whatever a page asks, also one that is added later, does not read a large table from one
// end to the other, and reads no more rows of it than the page's bounds say.
func TestEveryStatementOfThePagesReadsABoundedNumberOfRows(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	// The rows are wide, so that the table has far more pages than the sample.
	do(t, pool, `insert into idempotency_keys (purge_after, id, scope, completed_at, expires_at, result)
		select now() + interval '1 day' - i * interval '1 second', 'order-' || i, 'customer-' || i % 1000, now(), now() + interval '1 day' - i * interval '1 second', convert_to(repeat('x', 300), 'UTF8')
		from generate_series(1, $1::int) i`, tableRows)
	do(t, pool, `insert into idempotency_operations (id, scope, number, started_at, due_at, name, input, progressed_at, labels, results)
		select 'ride-' || i, 'rider', gen_random_uuid(), now(), now(), 'ride', '1', now(), '{call charge}', '{}' from generate_series(1, 30000) i`)
	do(t, pool, "analyze idempotency_keys, idempotency_operations")
	stop(t, pool, "rider", "stopped")
	execute(t, pool, "s", "i", 1)
	abandon(t, pool, "s", "lost")
	r := &recorder{statements: map[string][]any{}}
	b := open(t, pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = r }), idemweb.Config{Delete: always, Results: always})
	first := b.post("/scope", "scope", "customer-7")
	first.want(t, 200, "No index leads from a scope to its keys. So this page has read 20,000 keys")
	b.press(first, "Go on searching").want(t, 200, "this is a later page")
	b.post("/scope", "scope", "nobody").want(t, 200, "and none was of this scope")
	b.find("", "order-7").want(t, 200, "customer-7")
	b.find("rider", "stopped").want(t, 200, "Unfinished")
	b.get("/unfinished").want(t, 200, "10,000 or more have begun")
	b.get("/").want(t, 200, "about ", "10,000 or more")
	walk(t, b)
	if len(r.statements) < 12 {
		t.Errorf("only %d statements", len(r.statements))
	}
	for sql, args := range r.statements {
		if strings.Contains(sql, "from \"public\".\"idempotency_operations\"\nwhere progressed_at < clock_timestamp()") {
			continue // the doctor's, which counts all that stand still
		}
		bound := 1000.0 // of what is found along an index
		switch {
		case strings.Contains(sql, "tablesample"):
			bound = 30_000
		case strings.Contains(sql, "row_number()"):
			bound = 20_100 // a sort by groups reads the next one, too
		case strings.Contains(sql, "limit $1::bigint) walk"):
			bound = 10_000
		}
		read := 0.0
		explain(t, pool, sql, args).walk(func(n node) {
			if n.Type == "Seq Scan" && n.Table == "idempotency_keys" {
				t.Errorf("it reads the whole table: %s", sql)
			}
			if strings.Contains(n.Type, "Scan") && strings.HasPrefix(n.Table, "idempotency_") {
				read += (n.Rows + n.Removed) * n.Loops
			}
		})
		if read > bound {
			t.Errorf("it reads %.0f rows, more than %.0f: %s", read, bound, sql)
		}
	}
}
