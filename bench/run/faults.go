package run

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgidem/idempotency/bench/measure"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// faultBound is how long a client retries after a fault: longer than any lease.
const faultBound = 45 * time.Second

// faults counts the effects of calls that met one, of all peers at the same time:
// nothing here is timed but how long retries take to get an answer, which with
// some peers is the time until a lock expires.
func (b *bench) faults(ctx context.Context) error {
	entrants := b.divisible()
	b.logf("faults, %d peers at a time, %v at most", len(entrants), 4*faultBound)
	found := make([]results.Fault, len(entrants)*2)
	errs := make([]error, len(found))
	var wg sync.WaitGroup
	for i, e := range entrants {
		wg.Go(func() {
			for k, kind := range b.kinds(e) {
				f := &found[i*2+k]
				*f = results.Fault{Peer: e.Name, Kind: kind.name, Keys: b.Keys}
				if err := kind.meet(ctx, e, f, newIDs(b.Keys)); err != nil {
					errs[i] = fmt.Errorf("%s: %s: %w", e.Name, kind.name, err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.run.Faults = found
	return errors.Join(errs...)
}

// A kind of fault is met by calls with these IDs.
type kind struct {
	name string
	meet func(ctx context.Context, e *entrant, f *results.Fault, ids []string) error
}

func (b *bench) kinds(e *entrant) [2]kind {
	if e.Steps {
		return [2]kind{{results.KilledInCall, b.kill}, {results.LostAnswer, b.loseAnswers}}
	}
	return [2]kind{{results.Killed, b.kill}, {results.LostResponse, b.loseResponses}}
}

func newIDs(n int) (ids []string) {
	for range n {
		ids = append(ids, peers.NewCall().ID)
	}
	return ids
}

// aftermath retries the calls that have no answer, as clients do, until they
// have one, and counts what remains. Then it retries once more each call that
// was answered, to see whether it is answered the same.
func (b *bench) aftermath(ctx context.Context, e *entrant, f *results.Fault, client peers.Client, ids, answers []string) (err error) {
	errs := make([]error, len(ids))
	tooks := make([]time.Duration, len(ids))
	each(ids, func(i int) {
		start := time.Now()
		if answers[i] == "" {
			answers[i], errs[i] = retry(ctx, client, ids[i], start.Add(faultBound))
		}
		tooks[i] = time.Since(start)
	})
	f.Took = measure.Median(tooks)
	for i, id := range ids {
		n, err := b.server.Int(ctx, e.database, "select count(*) from charges where key = $1", id)
		if err != nil {
			return err
		}
		f.Effects = append(f.Effects, int(n))
		if e.Steps {
			charges, requests := b.provider.Count(id)
			f.Charges, f.Requests = append(f.Charges, charges), append(f.Requests, requests)
		}
		if errs[i] == nil {
			f.Answers++
		} else if f.Error == "" {
			f.Error = errs[i].Error()
		}
	}
	again := make([]string, len(ids))
	each(ids, func(i int) {
		if errs[i] == nil {
			again[i], errs[i] = retry(ctx, client, ids[i], time.Now().Add(faultBound))
		}
	})
	for i := range ids {
		if errs[i] == nil && again[i] != answers[i] {
			f.Wrong++
		}
	}
	return nil
}

func each(ids []string, do func(i int)) {
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}

// retry calls until there is an answer, whatever the error is.
func retry(ctx context.Context, client peers.Client, id string, bound time.Time) (string, error) {
	for {
		answer, err := client.Do(ctx, peers.CallOf(id))
		if err == nil || ctx.Err() != nil || time.Now().After(bound) {
			return answer, err
		}
		measure.Sleep(ctx, 100*time.Millisecond)
	}
}

// CallArg is the first argument of a process that has to call CallMain.
const CallArg = "call"

// A job is what such a process does.
type job struct {
	Peer string
	Env  peers.Env
	ID   string
}

// kill lets a process make each call, and kills it between the business write, or the
// charge at the provider, and the record. Another one, which starts afterwards, gets the retries.
func (b *bench) kill(ctx context.Context, e *entrant, f *results.Fault, ids []string) error {
	for _, id := range ids {
		if err := killOne(ctx, job{e.Name, b.env(e, results.Socket), id}); err != nil {
			return err
		}
	}
	client, err := b.client(ctx, e, b.env(e, results.Socket))
	if err != nil {
		return err
	}
	defer client.Close()
	return b.aftermath(ctx, e, f, client, ids, make([]string, len(ids)))
}

// written is what the process says when it is there.
const written = "written"

func killOne(ctx context.Context, j job) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	task, err := json.Marshal(j)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, CallArg)
	cmd.Stdin = strings.NewReader(string(task))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	said, err := bufio.NewReader(stdout).ReadString('\n')
	if strings.TrimSpace(said) != written {
		err = errors.Join(fmt.Errorf("the process that was to be killed said %q", said), err)
	} else {
		err = nil
	}
	err = errors.Join(err, cmd.Process.Kill())
	cmd.Wait()
	return err
}

// CallMain is that process: it makes one call and stops between the business
// write and the record.
func CallMain() error {
	var j job
	if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
		return err
	}
	p, err := peers.Named(j.Peer)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel() // a process that nobody kills
	client, err := p.Open(ctx, j.Env)
	if err != nil {
		return err
	}
	defer client.Close()
	call := peers.CallOf(j.ID)
	call.Hook = func(context.Context) {
		fmt.Println(written)
		io.Copy(io.Discard, os.Stdin)
		<-ctx.Done()
	}
	answer, err := client.Do(ctx, call)
	return fmt.Errorf("the adapter did not call Written: Do returned %q, %w", answer, err)
}

// loseResponses makes each call over a link that is cut when the server answers
// the COMMIT behind the business write: it has committed, and the client never
// hears of it. The same process goes on.
func (b *bench) loseResponses(ctx context.Context, e *entrant, f *results.Fault, ids []string) error {
	proxy, err := pgproxy.Listen(b.server.Network, b.server.Address)
	if err != nil {
		return err
	}
	defer proxy.Close()
	r := b.routes[results.Socket]
	r.address = fmt.Sprintf("127.0.0.1:%d", proxy.Port())
	client, err := b.client(ctx, e, b.envAt(e, r))
	if err != nil {
		return err
	}
	defer client.Close()
	if err := times(ctx, 3, firstCall(client)); err != nil {
		return err
	}
	answers := make([]string, len(ids))
	for i, id := range ids {
		lost := loseNext(proxy)
		answer, err := client.Do(ctx, peers.CallOf(id))
		proxy.SetRule(nil)
		if !lost() {
			return errors.New("no COMMIT was seen behind the business write")
		}
		if err == nil {
			answers[i] = answer
		}
	}
	return b.aftermath(ctx, e, f, client, ids, answers)
}

// loseAnswers makes each call without the provider's answer: it has charged. The same
// process goes on.
func (b *bench) loseAnswers(ctx context.Context, e *entrant, f *results.Fault, ids []string) error {
	client, err := b.client(ctx, e, b.env(e, results.Socket))
	if err != nil {
		return err
	}
	defer client.Close()
	for _, id := range ids {
		b.provider.LoseNext(id)
	}
	return b.aftermath(ctx, e, f, client, ids, make([]string, len(ids)))
}

// loseNext loses one response to COMMIT, the first behind a business write.
func loseNext(proxy *pgproxy.Proxy) (lost func() bool) {
	const (
		waiting = iota
		written
		done
	)
	var state atomic.Int32
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		switch {
		case !m.FromServer && isBusinessWrite(m.SQL):
			state.CompareAndSwap(waiting, written)
		case m.FromServer && m.Tag == "COMMIT" && state.CompareAndSwap(written, done):
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	return func() bool { return state.Load() == done }
}

// isBusinessWrite also knows the text that an object-relational mapper makes.
func isBusinessWrite(sql string) bool {
	return strings.HasPrefix(strings.ToLower(strings.ReplaceAll(sql, `"`, "")), "insert into charges")
}
