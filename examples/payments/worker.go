package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// A task is one order for a worker process, as its command line.
type task struct {
	database string
	key      string
	order    Order
	freeze   bool
}

func parseTask(args []string) (t task, err error) {
	flags := flag.NewFlagSet("payments worker", flag.ContinueOnError)
	flags.StringVar(&t.database, "database", "", "`name` of the database")
	flags.StringVar(&t.key, "key", "", "idempotency key")
	flags.StringVar(&t.order.Account, "account", "", "account to charge")
	flags.Int64Var((*int64)(&t.order.Amount), "amount", 0, "amount in `cents`")
	flags.BoolVar(&t.freeze, "freeze", false, "hang between the write and the commit")
	err = flags.Parse(args)
	return t, err
}

// work is the worker process: it charges once and prints the answer. It ends
// with its standard input, so that it cannot outlive the demo.
func work(ctx context.Context, server *pgxpool.Config, args []string, in io.Reader, out io.Writer) error {
	t, err := parseTask(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		io.Copy(io.Discard, in)
		cancel()
	}()
	pool, err := open(ctx, server, t.database)
	if err != nil {
		return err
	}
	defer pool.Close()
	service, err := NewService(pool, idempotency.Config{})
	if err != nil {
		return err
	}
	if t.freeze {
		return service.freeze(ctx, t, out)
	}
	a, err := call(ctx, service, t.key, t.order)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(a)
}

// freeze is Service.Charge in a process that hangs at the worst moment: all is
// written, and nothing committed. It prints the receipt it will never give.
func (s *Service) freeze(ctx context.Context, t task, out io.Writer) error {
	_, _, err := idempotency.Do(ctx, s.store, chargeKey(t.key, t.order),
		func(ctx context.Context, tx pgx.Tx) (Receipt, error) {
			receipt, err := Charge(ctx, tx, t.order)
			if err != nil {
				return Receipt{}, err
			}
			if err := json.NewEncoder(out).Encode(answer{Receipt: receipt}); err != nil {
				return Receipt{}, err
			}
			<-ctx.Done()
			return Receipt{}, ctx.Err()
		})
	return err
}

// A worker is a worker process, seen from the demo.
type worker struct {
	cmd     *exec.Cmd
	in      io.Closer
	answers *json.Decoder
	errors  bytes.Buffer
}

// startWorker runs this program once more, as a worker with one order.
func (d *demo) startWorker(ctx context.Context, key string, order Order, flags ...string) (*worker, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := append([]string{"worker",
		"-database", d.pool.Config().ConnConfig.Database,
		"-key", key,
		"-account", order.Account,
		"-amount", strconv.FormatInt(int64(order.Amount), 10),
	}, flags...)
	w := &worker{cmd: exec.CommandContext(ctx, program, args...)}
	w.cmd.Stderr = &w.errors
	in, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.in, w.answers = in, json.NewDecoder(out)
	return w, w.cmd.Start()
}

func (w *worker) pid() int { return w.cmd.Process.Pid }

// answer reads what the worker prints, or why it printed nothing.
func (w *worker) answer() (answer, error) {
	var a answer
	if err := w.answers.Decode(&a); err != nil {
		w.stop()
		return answer{}, fmt.Errorf("worker: no answer (%w): %s", err, strings.TrimSpace(w.errors.String()))
	}
	return a, nil
}

// kill is kill -9: the process can neither roll back nor say goodbye.
func (w *worker) kill() error { return w.cmd.Process.Kill() }

// wasKilled makes sure that the worker did not come to an end by itself.
func (w *worker) wasKilled() error {
	if exit, ok := errors.AsType[*exec.ExitError](w.cmd.Wait()); !ok || exit.Exited() {
		return fmt.Errorf("worker: it should have been killed, and ended with %v", w.cmd.ProcessState)
	}
	return nil
}

// stop ends the worker if it still runs.
func (w *worker) stop() {
	w.in.Close()
	w.cmd.Wait()
}
