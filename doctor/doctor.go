// Package doctor looks for what keeps package idempotency from keeping its
// promise in a database, or will hurt there.
//
// It only reads, takes a fraction of a second, and can run whenever a program
// starts:
//
//	findings, err := doctor.Check(ctx, pool, store.Config())
//
// The command "idempotency doctor" prints the same findings.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
	"github.com/pgidem/idempotency/internal/visible"
)

// A Finding is something that should be otherwise.
type Finding struct {
	Severity Severity `json:"severity"`
	Check    string   `json:"check"`  // a short name that does not change, such as "purge index"
	Found    string   `json:"found"`  // what is so, with its figures
	Remedy   string   `json:"remedy"` // what to do
}

// String is one line. What could do something to a terminal is escaped in it: the
// names of roles, schemas and triggers are other people's.
func (f Finding) String() string {
	return visible.Text(fmt.Sprintf("%s: %s: %s: %s", f.Severity, f.Check, f.Found, f.Remedy))
}

// Severity says how much a Finding matters.
type Severity string

const (
	Error   Severity = "error"   // calls fail, or can take effect twice
	Warning Severity = "warning" // the promise is weakened, or the table grows
	Note    Severity = "note"    // good to know
)

var severities = []Severity{Error, Warning, Note}

// Check returns what it finds in the database of pool, the worst first, and
// nothing for a healthy one. Of cfg it needs the Schema, MaxIdle and TxOptions
// that the program's Store has. An error means that the database could not be
// asked, and wraps the context's error when that has ended; what was found until
// then is returned with it.
//
// Run it with the pool that the program uses: privileges, isolation, timeouts
// and a pooler are properties of its connections. It takes one connection of the
// pool at a time. Behind a pooler it opens two of its own, and closes them.
func Check(ctx context.Context, pool *pgxpool.Pool, cfg idempotency.Config) ([]Finding, error) {
	return check(ctx, pool, cfg, program, time.Now)
}

// CheckReader is Check for a role that looks and makes no calls, as the commands
// get, list and stats do: it needs to select, of the column result aside, and what
// matters to calls alone, such as the timeouts of its connections, is no finding.
func CheckReader(ctx context.Context, pool *pgxpool.Pool, cfg idempotency.Config) ([]Finding, error) {
	return check(ctx, pool, cfg, reader, time.Now)
}

// A purpose is what the connection's role is for.
type purpose struct {
	privileges []string // that it needs on the table
	calls      bool     // it runs Do and DoTx
	sparing    bool     // it can do without the column result
}

var (
	program = purpose{privileges: []string{"select", "insert", "update", "delete"}, calls: true}
	reader  = purpose{privileges: []string{"select"}, sparing: true}
)

// checks are in the order in which one rests on another.
var checks = []func(context.Context, *patient) error{
	checkCatalog,
	checkPooler, // before the others, since it decides what can be asked
	checkServer,
	checkSession,
	checkTable,
	checkOwner,
	checkIndexes,
	checkHooks,
	checkPolicies,
	checkCitus,
	checkChildren,
	checkPublications,
	checkSearchPath,
	checkPrivileges,
	checkAutovacuum,
	checkPurge,
	checkUnfinished,
	checkMigrations,
	checkClock,
}

func check(ctx context.Context, pool *pgxpool.Pool, cfg idempotency.Config, role purpose, now func() time.Time) ([]Finding, error) {
	store, err := idempotency.NewWithConfig(pool, cfg) // for the defaults, and their validation
	if err != nil {
		return nil, err
	}
	p := &patient{pool: pool, cfg: store.Config(), role: role, now: now}
	for _, look := range checks {
		if err = look(ctx, p); errors.Is(err, errShadowed) {
			err = nil
			break
		}
		if err != nil {
			err = fmt.Errorf("idempotency/doctor: %w", err)
			break
		}
	}
	slices.SortStableFunc(p.findings, func(a, b Finding) int {
		return slices.Index(severities, a.Severity) - slices.Index(severities, b.Severity)
	})
	return p.findings, err
}

// A patient is the database under examination.
type patient struct {
	pool     *pgxpool.Pool
	cfg      idempotency.Config
	role     purpose
	now      func() time.Time
	table    *table // nil if there is none that can be used
	findings []Finding
}

func (p *patient) find(s Severity, check, found, remedy string) {
	p.findings = append(p.findings, Finding{s, check, found, remedy})
}

// query asks for one row, in a mode that works through every pooler: a broken one
// must be found, and not break the question. The server then answers with text, so
// a statement returns no value that a setting of the session shapes: times and
// numbers with a fraction come as whole numbers, names as text.
//
// A superuser may be asking, with whatever search_path, so every operator and
// function of a statement is exactly one of pg_catalog: casts are written out, and
// polymorphic functions qualified. PostgreSQL prefers an exact match in any schema of
// the search_path to one of its own with an implicit cast.
func (p *patient) query(ctx context.Context, what, sql string, args []any, into ...any) error {
	args = append([]any{pgx.QueryExecModeExec}, args...)
	if err := p.pool.QueryRow(ctx, sql, args...).Scan(into...); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// An untrusted is the error of read about what it does not read.
type untrusted struct{ found, remedy string }

func (e untrusted) Error() string { return e.found }

// read is query for the rows of a table in the schema of the keys' table. It looks at the
// table and its columns under a lock first, since the owner of the schema can replace it at any time, and
// returns keytable.ErrMissing or an untrusted where it may not be read.
func (p *patient) read(ctx context.Context, what, table, sql string, into ...any) error {
	err := pgx.BeginTxFunc(ctx, p.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error { // not yet read only: see keytable.Hold
		t, err := keytable.Hold(ctx, tx, p.table.schema, table, keytable.Reading, pgx.QueryExecModeExec)
		stranger := t.StrangerByName(keytable.Reading)
		switch name := p.table.sibling(table); {
		case errors.Is(err, keytable.ErrNoTable), err == nil && !t.IsTable():
			return untrusted{name + " is not a table", "move it out of the way, and let only trusted roles create in the schema"}
		case err != nil:
			return err
		case stranger != nil:
			return untrusted{stranger.Found(name), stranger.Remedy()}
		case !t.Fits(): // for other types than ours an operator that somebody has made can be an exact match
			return untrusted{name + " was not made by this package: " + t.Unfit(), "move it out of the way, then " + migrate}
		}
		if _, err := tx.Exec(ctx, "set transaction read only", pgx.QueryExecModeExec); err != nil {
			return err
		}
		return tx.QueryRow(ctx, sql, pgx.QueryExecModeExec).Scan(into...)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// unreadable: the role may not read the table, which checkPrivileges says of that of the
// keys, or the table is not there.
func unreadable(err error) bool {
	return remedy.Denied(err) || errors.Is(err, keytable.ErrMissing)
}
