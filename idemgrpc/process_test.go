package idemgrpc_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemgrpc"
	"github.com/pgidem/idempotency/idemgrpc/internal/pay"
	"github.com/pgidem/idempotency/internal/pgtest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// serverEnv makes the test binary a process that serves charges; its value is the
// DATABASE_URL.
const serverEnv = "IDEMGRPC_TEST_SERVER"

func serveAsProcess() int {
	err := func() error {
		pool, err := pgxpool.New(context.Background(), os.Getenv(serverEnv))
		if err != nil {
			return err
		}
		idem, err := idemgrpc.New(idempotency.New(pool), idemgrpc.Config{Methods: []string{pay.Payments_Charge_FullMethodName}, Scope: account})
		if err != nil {
			return err
		}
		server := grpc.NewServer(grpc.ChainUnaryInterceptor(idem.Unary))
		pay.RegisterPaymentsServer(server, service{charge: func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
			response := &pay.ChargeResponse{Amount: r.Amount}
			who, _ := account(ctx, "")
			err := idemgrpc.Tx(ctx).QueryRow(ctx, `insert into charges (account, amount) values ($1, $2) returning id`, who, r.Amount).Scan(&response.Id)
			if len(metadata.ValueFromIncomingContext(ctx, "hang")) > 0 {
				fmt.Println("hanging")
				select {}
			}
			return response, err
		}})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(l.Addr())
		return server.Serve(l)
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
	p.client = b.dial(p.line(b))
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
		killed <- p.send(metadata.AppendToOutgoingContext(b.with("k"), "hang", "yes"), tenEuros())
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
	c := b.protected(idemgrpc.Config{}, b.charge)
	c.pay("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.effects(1)
}
