package idemconnect_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemconnect"
	"github.com/pgidem/idempotency/idemconnect/internal/pay"
	"github.com/pgidem/idempotency/idemconnect/internal/pay/payconnect"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// serverEnv makes the test binary a process that serves charges; its value is the
// DATABASE_URL.
const serverEnv = "IDEMCONNECT_TEST_SERVER"

func serveAsProcess() int {
	err := func() error {
		pool, err := pgxpool.New(context.Background(), os.Getenv(serverEnv))
		if err != nil {
			return err
		}
		idem, err := idemconnect.New(idempotency.New(pool), idemconnect.Config{Scope: account})
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle(payconnect.NewPaymentsHandler(service{charge: func(ctx context.Context, r *request) (*response, error) {
			m := &pay.ChargeResponse{Amount: r.Msg.Amount}
			err := idemconnect.Tx(ctx).QueryRow(ctx, `insert into charges (account, amount) values ($1, $2) returning id`, r.Header().Get("Account"), r.Msg.Amount).Scan(&m.Id)
			if r.Header().Get("Hang") != "" {
				fmt.Println("hanging")
				select {}
			}
			return connect.NewResponse(m), err
		}}, connect.WithInterceptors(idem)))
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println("http://" + l.Addr().String())
		return http.Serve(l, mux)
	}()
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// A process is a server of its own, and a client of it.
type process struct {
	*client
	cmd *exec.Cmd
	out *bufio.Scanner
}

func (b *bundle) spawn() *process {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+pgtest.URL(b.pool))
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
		cmd.Wait()
	})
	p := &process{cmd: cmd, out: bufio.NewScanner(out)}
	p.client = &client{PaymentsClient: payconnect.NewPaymentsClient(http.DefaultClient, p.line(b)), bundle: b}
	return p
}

func (p *process) line(t testing.TB) string {
	t.Helper()
	if !p.out.Scan() {
		t.Fatal("the process has ended")
	}
	return p.out.Text()
}

func TestEightProcessesExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids, first := map[int64]bool{}, 0
	var processes []*process
	for range 8 {
		processes = append(processes, b.spawn())
	}
	for _, p := range processes {
		for range 5 {
			wg.Go(func() {
				a := p.pay("k")
				mu.Lock()
				defer mu.Unlock()
				if a.err != nil {
					t.Error(a.err)
				}
				ids[a.GetId()] = true
				if !a.isReplay() {
					first++
				}
			})
		}
	}
	wg.Wait()
	if len(ids) != 1 || first != 1 {
		t.Errorf("answers %v, %d of them no replay", ids, first)
	}
	b.effects(1)
}

func TestProcessKilledBetweenTheWriteAndTheCommitLeavesOneEffect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.spawn()
	killed := make(chan answer)
	go func() {
		r := b.request(tenEuros(), "k")
		r.Header().Set("Hang", "yes")
		killed <- p.send(t.Context(), r)
	}()
	if p.line(t) != "hanging" {
		t.Fatal("the handler does not hang")
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if a := <-killed; a.err == nil {
		t.Errorf("the killed process has answered %v", a.ChargeResponse)
	}
	c := b.protected(idemconnect.Config{}, b.charge)
	c.pay("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.effects(1)
}
