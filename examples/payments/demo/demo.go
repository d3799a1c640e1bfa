// Package demo shows what the payments service does when the network and its
// processes fail: it starts the service as two processes on one database, and a card
// provider, puts a proxy in front that loses answers, and sends customers through it.
//
// Every count and every amount that it prints comes from the database, or is what the
// card provider has printed. When one is not as expected, it says which, and returns an
// error.
package demo

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Command is the demo as a command: it makes a database for this run on the
// server of DATABASE_URL, and drops it afterwards, also when ctx ends.
func Command(ctx context.Context, args []string, out, usage io.Writer) error {
	flags := flag.NewFlagSet("payments", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // what it says of a wrong flag quotes it
	flags.Usage = func() {
		flags.SetOutput(usage)
		fmt.Fprintln(usage, "usage: payments [demo] [flags]   the demo, on the server of DATABASE_URL\n       payments serve [flags]    the service; -h lists its flags\n       payments provider [flags] a card provider for it")
		flags.PrintDefaults()
	}
	seed := flags.Uint64("seed", 0, "`number` that decides which answers are lost; default random")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return err
	case err != nil:
		return errors.New(QuotedError(args, err))
	case flags.NArg() > 0:
		return errors.New("the demo takes no " + Quoted(args, flags.Arg(0)))
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	d := newDemo(out, program, cmp.Or(*seed, 1+rand.Uint64N(1e6)))
	return d.run(ctx, os.Getenv("DATABASE_URL"))
}

// A demo is one run. The fields in the middle are what its tests break.
type demo struct {
	out     io.Writer
	program string // the service
	seed    uint64

	protected   []string                    // flags of the service in the run that has to be right
	unprotected []string                    // and in the run that cannot be
	losses      func(*rand.Rand) int        // how many answers to one order get lost
	keyOf       func(o order, n int) string // which key the customer sends, the nth time

	server   server
	database string
	pool     *pgxpool.Pool
	fleet    fleet
	cards    cards
	proxy    *proxy

	failed []string // what was not as expected
}

func newDemo(out io.Writer, program string, seed uint64) *demo {
	return &demo{
		out:         out,
		program:     program,
		seed:        seed,
		unprotected: []string{"-unsafe-no-idempotency"},
		losses:      upToThree,
		keyOf:       func(o order, _ int) string { return o.Key },
	}
}

// timeLimit is far more than a slow machine needs.
const timeLimit = 3 * time.Minute

// run plays everything in a database that is gone afterwards.
func (d *demo) run(ctx context.Context, url string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	if d.server, err = parseServer(url); err != nil {
		return err
	}
	if d.database, err = d.server.create(ctx); err != nil {
		return stopped(ctx, err)
	}
	err = d.runIn(ctx)
	return errors.Join(stopped(ctx, err), d.server.drop(d.database))
}

func (d *demo) runIn(ctx context.Context) (err error) {
	if d.pool, err = d.server.open(ctx, d.database); err != nil {
		return err
	}
	defer d.pool.Close()
	if d.proxy, err = startProxy(); err != nil {
		return err
	}
	defer d.proxy.close()
	defer d.cards.kill() // what still runs after an error
	defer d.fleet.kill()
	if err := d.play(ctx); err != nil {
		return err
	}
	if len(d.failed) > 0 {
		return errors.New("not as expected:\n  " + strings.Join(d.failed, "\n  "))
	}
	return nil
}

// play is the programme.
func (d *demo) play(ctx context.Context) error {
	if err := d.startCards(ctx); err != nil {
		return err
	}
	if err := d.start(ctx, d.protected); err != nil {
		return err
	}
	if err := d.introduce(ctx); err != nil {
		return err
	}
	for i, s := range scenes {
		if err := d.perform(ctx, i+1, s); err != nil {
			return fmt.Errorf("scene %d, %s: %w", i+1, s.title, err)
		}
	}
	if err := d.rushProtected(ctx, len(scenes)+1); err != nil {
		return err
	}
	if err := d.rushUnprotected(ctx, len(scenes)+2); err != nil {
		return err
	}
	if err := d.report(ctx); err != nil {
		return err
	}
	d.invite()
	return nil
}

func (d *demo) introduce(ctx context.Context) error {
	if err := d.makeTables(ctx); err != nil {
		return err
	}
	var version string
	const sql = `select split_part(current_setting('server_version'), ' ', 1)`
	if err := d.pool.QueryRow(ctx, sql).Scan(&version); err != nil {
		return fmt.Errorf("asking for the version: %w", err)
	}
	d.print("PostgreSQL %s, database %s.", version, d.database)
	d.print("The service runs as two processes, %d and %d. Requests go to them in turn, through a proxy.", d.fleet[0].pid(), d.fleet[1].pid())
	d.print("The card provider is a process, too, %d.", d.cards.pid())
	return nil
}

// stopped puts the signal in place of what it broke off.
func stopped(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
	return err
}

func (d *demo) print(format string, args ...any) {
	fmt.Fprintf(d.out, format+"\n", args...)
}

// say prints a line of a scene.
func (d *demo) say(format string, args ...any) {
	d.print("   "+format, args...)
}

// expect prints and notes a difference. The demo goes on, so that its report is
// whole.
func expect[T comparable](d *demo, what string, want, got T) (ok bool) {
	if got != want {
		d.fail("%s: expected %v, found %v", what, want, got)
	}
	return got == want
}

func (d *demo) fail(format string, args ...any) {
	difference := fmt.Sprintf(format, args...)
	d.failed = append(d.failed, difference)
	d.print(" ✗ %s", difference)
}
