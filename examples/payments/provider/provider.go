// Package provider is a card provider to try the service with, as a process of its own.
// It charges any card but "declined", and keeps idempotency keys as Stripe does:
//
//   - A key that comes again gets the first answer, a refusal too.
//   - 409 while the first request with the key is still being answered.
//   - 400 for a key that comes with another card or amount.
//
// It prints a line for each charge, and forgets everything when it ends.
package provider

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/pgidem/idempotency/examples/payments/demo"
)

// Command serves until ctx ends.
func Command(ctx context.Context, args []string, out, logs io.Writer) error {
	flags := flag.NewFlagSet("payments provider", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // what it says of a wrong flag quotes it
	flags.Usage = func() { flags.SetOutput(logs); flags.PrintDefaults() }
	addr := flags.String("addr", "localhost:8090", "`host:port` to listen on")
	silent := flags.Int("silent", 0, "`number` of requests, the first ones, that are executed and never answered")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return err
	case err != nil:
		return errors.New(demo.QuotedError(args, err))
	case flags.NArg() > 0:
		return errors.New("provider takes flags only, and not " + demo.Quoted(args, flags.Arg(0)))
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	p := &provider{out: out, silent: *silent, answers: make(map[string]*answer)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /charges", p.charge)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	slog.New(slog.NewJSONHandler(logs, nil)).Info("listening", "address", listener.Addr().String())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type provider struct {
	out io.Writer

	mu      sync.Mutex
	silent  int                // requests to come that get no answer
	charges int                // made
	answers map[string]*answer // by idempotency key
}

// A request is what a key belongs to.
type request struct {
	Card   string `json:"card"`
	Amount int64  `json:"amount"` // in cents
}

// An answer is kept for its key.
type answer struct {
	request  request
	status   int
	ID       string `json:"id,omitempty"` // of the charge
	Error    string `json:"error,omitempty"`
	underWay bool   // its first request waits for it
}

func (p *provider) charge(w http.ResponseWriter, r *http.Request) {
	var asked request
	key := r.Header.Get("Idempotency-Key")
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || key == "" {
		http.Error(w, "send an Idempotency-Key, and JSON", http.StatusBadRequest)
		return
	}
	a, silent := p.answer(key, asked)
	if silent {
		<-r.Context().Done() // the client has gone
		p.end(key)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.status)
	_ = json.NewEncoder(w).Encode(a) // fails when the client has gone
}

// answer executes a request whose key is new.
func (p *provider) answer(key string, asked request) (a answer, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept, known := p.answers[key]
	switch {
	case !known:
		kept = p.execute(asked)
		p.answers[key] = kept
		if kept.underWay = p.silent > 0; kept.underWay {
			p.silent--
		}
		return *kept, kept.underWay
	case kept.request != asked:
		return answer{status: http.StatusBadRequest, Error: "the key belongs to another request"}, false
	case kept.underWay:
		return answer{status: http.StatusConflict, Error: "a request with this key is under way"}, false
	}
	fmt.Fprintf(p.out, "%s: the same key again, the same answer\n", kept.ID+kept.Error)
	return *kept, false
}

func (p *provider) execute(asked request) *answer {
	if asked.Card == "declined" {
		fmt.Fprintf(p.out, "declined: %v on the card %s\n", cents(asked.Amount), asked.Card)
		return &answer{request: asked, status: http.StatusPaymentRequired, Error: "declined"}
	}
	p.charges++
	a := &answer{request: asked, status: http.StatusOK, ID: fmt.Sprint("ch_", p.charges)}
	fmt.Fprintf(p.out, "%s: charged %v on the card %s\n", a.ID, cents(asked.Amount), asked.Card)
	return a
}

func (p *provider) end(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers[key].underWay = false
}

type cents int64

func (c cents) String() string { return fmt.Sprintf("%d.%02d", c/100, c%100) }
