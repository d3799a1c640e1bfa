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
	out      io.Writer
	pool     *pgxpool.Pool
	service  *Service
	receipts map[string]Receipt // what clients were told, by key
	calls    int                // that were answered with a receipt
	failed   []string           // what was not as expected
}

func newDemo(out io.Writer, pool *pgxpool.Pool) (*demo, error) {
	service, err := NewService(pool, idempotency.Config{})
	if err != nil {
		return nil, err
	}
	return &demo{out: out, pool: pool, service: service, receipts: make(map[string]Receipt)}, nil
}

// A scene is one thing that happens to payments. It has to change the tables by
// exactly what it says.
type scene struct {
	title  string
	change ledger
	play   func(*demo, context.Context) error
}

// An outcome is the line of a scene in the summary.
type outcome struct {
	title string
	after ledger
	ok    bool
}

// run plays the scenes and returns an error if anything was not as expected.
func (d *demo) run(ctx context.Context, scenes []scene) error {
	if err := d.openAccounts(ctx); err != nil {
		return err
	}
	var outcomes []outcome
	for i, s := range scenes {
		s.title = fmt.Sprintf("%d. %s", i+1, s.title)
		o, err := d.perform(ctx, s)
		if err != nil {
			return fmt.Errorf("scene %s: %w", s.title, err)
		}
		outcomes = append(outcomes, o)
	}
	d.summarize(outcomes)
	if err := d.reconcile(ctx); err != nil {
		return fmt.Errorf("reconciliation: %w", err)
	}
	return d.verdict()
}

func (d *demo) openAccounts(ctx context.Context) error {
	const sql = `insert into accounts (id, opening, balance) values ('alice', 100000, 100000), ('bob', 1000, 1000)`
	if _, err := d.pool.Exec(ctx, sql); err != nil {
		return fmt.Errorf("opening the accounts: %w", err)
	}
	return nil
}

func (d *demo) perform(ctx context.Context, s scene) (outcome, error) {
	fmt.Fprintf(d.out, "\n%s\n", s.title)
	before, err := readLedger(ctx, d.pool)
	if err != nil {
		return outcome{}, err
	}
	failures := len(d.failed)
	if err := s.play(d, ctx); err != nil {
		return outcome{}, err
	}
	after, err := readLedger(ctx, d.pool)
	if err != nil {
		return outcome{}, err
	}
	d.say("tables: %s", before.changes(after))
	d.expectLedger(before.plus(s.change), after)
	return outcome{s.title, after, len(d.failed) == failures}, nil
}

// say prints a line of the scene.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "   "+format+"\n", args...)
}

// expect notes a difference. The demo goes on, so that the summary is whole.
func expect[T comparable](d *demo, what string, want, got T) {
	if got != want {
		d.fail(difference(what, want, got))
	}
}

func difference[T any](what string, want, got T) string {
	return fmt.Sprintf("%s: expected %v, found %v", what, want, got)
}

func (d *demo) fail(what string) {
	d.say("✗ %s", what)
	d.failed = append(d.failed, what)
}

func (d *demo) expectLedger(want, got ledger) {
	wanted, gotten := want.values(), got.values()
	for i, name := range ledgerColumns {
		expect(d, name, wanted[i], gotten[i])
	}
}

// An answer is what one call got. Workers send theirs as JSON.
type answer struct {
	Receipt  Receipt
	Replayed bool
}

func (a answer) String() string {
	if a.Replayed {
		return a.Receipt.String() + " (replayed)"
	}
	return a.Receipt.String() + " (executed)"
}

// executes makes a call that has to be the first with its key.
func (d *demo) executes(ctx context.Context, s *Service, key string, order Order) error {
	return d.charge(ctx, s, key, order, false)
}

// replays makes a call that has to get the receipt of an earlier one.
func (d *demo) replays(ctx context.Context, s *Service, key string, order Order) error {
	return d.charge(ctx, s, key, order, true)
}

func (d *demo) charge(ctx context.Context, s *Service, key string, order Order, replayed bool) error {
	a, err := call(ctx, s, key, order)
	if err != nil {
		return err
	}
	d.say("→ %v", a)
	d.keep(key, a)
	expect(d, "replayed", replayed, a.Replayed)
	return nil
}

// fails makes a call that has to end with want. Any other error is about more
// than the key, and there is no point in going on.
func (d *demo) fails(ctx context.Context, s *Service, key string, order Order, want error) error {
	a, err := call(ctx, s, key, order)
	switch {
	case errors.Is(err, want):
		d.say("→ %v", err)
		return nil
	case err != nil:
		return err
	}
	d.say("→ %v", a)
	d.keep(key, a)
	d.fail(fmt.Sprintf("the error of %s: expected %q, got none", key, want))
	return nil
}

func call(ctx context.Context, s *Service, key string, order Order) (answer, error) {
	receipt, replayed, err := s.Charge(ctx, key, order)
	return answer{receipt, replayed}, err
}

// keep remembers what a client was told. All that is said about one key has to
// be the same.
func (d *demo) keep(key string, a answer) {
	d.calls++
	told, ok := d.receipts[key]
	if !ok {
		d.receipts[key] = a.Receipt
		return
	}
	expect(d, "the receipt of "+key, told, a.Receipt)
}

func (d *demo) summarize(outcomes []outcome) {
	fmt.Fprintf(d.out, "\n%-41s", "The tables after each scene")
	d.row(ledgerColumns)
	for _, o := range outcomes {
		fmt.Fprintf(d.out, "%s %-39s", mark(o.ok), o.title)
		d.row(o.after.values())
	}
}

func (d *demo) row(values []string) {
	for _, v := range values {
		fmt.Fprintf(d.out, " %8s", v)
	}
	fmt.Fprintln(d.out)
}

func mark(ok bool) string {
	if ok {
		return "✓"
	}
	return "✗"
}

func (d *demo) verdict() error {
	if len(d.failed) > 0 {
		return errors.New("not as expected:\n  " + strings.Join(d.failed, "\n  "))
	}
	return nil
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
