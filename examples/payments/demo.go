package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// A demo plays scenes and checks them: what each call returned, what it changed
// in the tables, and at the end whether what the clients were told is what the
// tables say.
type demo struct {
	out     io.Writer
	pool    *pgxpool.Pool
	service *Service

	receipts map[string]Receipt // what clients were told, by key
	answers  int                // how often

	stage  string   // the scene that is played
	failed []string // what was not as expected
}

// A scene is one thing that happens to payments. It has to change the tables by
// exactly what it says.
type scene struct {
	title  string
	change ledger
	play   func(*demo, context.Context) error
}

func newDemo(out io.Writer, pool *pgxpool.Pool) (*demo, error) {
	service, err := NewService(pool, idempotency.Config{})
	if err != nil {
		return nil, err
	}
	return &demo{out: out, pool: pool, service: service, receipts: make(map[string]Receipt)}, nil
}

// run plays the scenes, and returns an error if anything was not as expected.
func (d *demo) run(ctx context.Context, scenes []scene) error {
	if err := d.introduce(ctx); err != nil {
		return err
	}
	var summary []outcome
	for i, s := range scenes {
		d.stage = fmt.Sprintf("%d. %s", i+1, s.title)
		o, err := d.perform(ctx, s)
		if err != nil {
			return fmt.Errorf("scene %s: %w", d.stage, err)
		}
		summary = append(summary, o)
	}
	d.summarize(summary)
	d.stage = "reconciliation"
	if err := d.reconcile(ctx); err != nil {
		return fmt.Errorf("%s: %w", d.stage, err)
	}
	if len(d.failed) > 0 {
		return errors.New("not as expected:\n  " + strings.Join(d.failed, "\n  "))
	}
	return nil
}

// introduce opens the accounts and says where everything happens.
func (d *demo) introduce(ctx context.Context) error {
	const open = `insert into accounts (id, opening, balance) values ('alice', 10000, 10000), ('bob', 1000, 1000)`
	if _, err := d.pool.Exec(ctx, open); err != nil {
		return fmt.Errorf("opening the accounts: %w", err)
	}
	var version, database string
	const look = `select split_part(current_setting('server_version'), ' ', 1), current_database()`
	if err := d.pool.QueryRow(ctx, look).Scan(&version, &database); err != nil {
		return fmt.Errorf("asking for the version: %w", err)
	}
	accounts, err := d.readAccounts(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "PostgreSQL %s, database %s", version, database)
	for _, a := range accounts {
		fmt.Fprintf(d.out, ", %s has %v", a.ID, a.Balance)
	}
	fmt.Fprintln(d.out, "\nThe lines \"tables\" are read back. \"written\" counts undone charges, too.")
	return nil
}

// An outcome is what the tables say after a scene, and whether all of the scene
// was as expected.
type outcome struct {
	title string
	after ledger
	ok    bool
}

func (d *demo) perform(ctx context.Context, s scene) (outcome, error) {
	fmt.Fprintf(d.out, "\n%s\n", d.stage)
	failed := len(d.failed)
	before, err := readLedger(ctx, d.pool)
	if err != nil {
		return outcome{}, err
	}
	if err := s.play(d, ctx); err != nil {
		return outcome{}, err
	}
	after, err := d.expectChange(ctx, before, s.change)
	return outcome{d.stage, after, len(d.failed) == failed}, err
}

// expectChange reads the tables and says what has changed in them.
func (d *demo) expectChange(ctx context.Context, before, change ledger) (after ledger, err error) {
	after, err = readLedger(ctx, d.pool)
	if err != nil {
		return ledger{}, err
	}
	d.say("tables: %s", before.changes(after))
	wanted, found := before.plus(change).values(), after.values()
	for i, c := range columns {
		expect(d, c.name, wanted[i], found[i])
	}
	return after, nil
}

// say prints a line of the scene.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "  "+format+"\n", args...)
}

// expect prints and notes a difference. The demo goes on, so that its summary
// is whole.
func expect[T comparable](d *demo, what string, want, got T) {
	if got != want {
		d.say("✗ %s", note(d, what, want, got))
	}
}

func note[T any](d *demo, what string, want, got T) string {
	difference := fmt.Sprintf("%s: expected %v, found %v", what, want, got)
	d.failed = append(d.failed, d.stage+": "+difference)
	return difference
}

func (d *demo) summarize(summary []outcome) {
	var names []string
	for _, c := range columns {
		names = append(names, c.name)
	}
	fmt.Fprintln(d.out)
	d.row("  scene", names)
	for _, o := range summary {
		d.row(mark(o.ok)+" "+o.title, o.after.values())
	}
}

func (d *demo) row(title string, values []string) {
	fmt.Fprintf(d.out, "%-35s", title)
	for i, c := range columns {
		fmt.Fprintf(d.out, " %*s", c.width, values[i])
	}
	fmt.Fprintln(d.out)
}

func mark(ok bool) string {
	if ok {
		return "✓"
	}
	return "✗"
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
